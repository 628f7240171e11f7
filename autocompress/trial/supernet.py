"""Sub-networks that share the weights of one student, trained along with it: one training, a model for every width."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from autocompress.core.config import Part
from autocompress.core.method import Context
from autocompress.core.registry import PRUNE
from autocompress.core.task import logits_by_head
from autocompress.distill.kernels import soft_target_kl

# Ratios that are drawn from lie this far apart: each is traced once.
RATIO_STEP = 0.05
# Sub-networks drawn for each batch, beside the narrowest.
SAMPLED_PER_BATCH = 2


def subnetwork_pruning(ratio: float) -> Part:
    """Return the cut that takes a sub-network out of its student: the channels of a narrower one lie in a wider one."""
    return Part.of(
        "structured",
        pruning_ratio=ratio,
        criterion="order",
        scope="uniform",
        schedule="one_shot",
        recovery_epochs=0,
    )


class SubNetworks:
    """The loss of sub-networks on a batch, by the sandwich rule with in-place distillation.

    Of each batch the narrowest sub-network and two drawn ones learn what the whole student says on it, as the whole
    student learns from targets and teacher (Yu and Huang 2019, arXiv:1903.05134). Their weights are those of the
    student, with the channels left out; their batch norms see their own statistics, which are thrown away: a
    sub-network's running averages are estimated anew when it is cut out.

    Args:
        model: The student.
        heads: Of its task.
        context: The example to trace with.
        narrowest: Share of the channels that the narrowest does without.

    Raises:
        CompressionError: The student has no channels that can be left out.
    """

    def __init__(self, model: nn.Module, heads: Mapping[str, int], context: Context, narrowest: float) -> None:
        self._model = model
        # A cut is checked by what a model returns: by weights that have not diverged.
        self._untrained = copy.deepcopy(model)
        self._heads = heads
        self._context = context
        self._ratios = [round(RATIO_STEP * (step + 1), 2) for step in range(int(narrowest / RATIO_STEP))] or [narrowest]
        self._ratios[-1] = narrowest
        self._cut: dict[float, _SubNetwork] = {}
        self._get_subnetwork(narrowest)

    def __call__(self, inputs: tuple[Tensor, ...], logits: Mapping[str, Tensor]) -> Tensor:
        """Return the mean divergence of the sub-networks from the student, summed over them, ``[]``."""
        # Torch's own stream is the one that a pause keeps.
        drawn = torch.randint(len(self._ratios), (SAMPLED_PER_BATCH,), device="cpu").tolist()
        losses = []
        for ratio in dict.fromkeys([self._ratios[-1], *(self._ratios[place] for place in drawn)]):
            output = logits_by_head(self._get_subnetwork(ratio)(self._model, inputs), self._heads)
            losses += [soft_target_kl(output[head].float(), logits[head].detach(), 1.0) for head in self._heads]
        return torch.stack(losses).sum() / len(self._heads)

    def _get_subnetwork(self, ratio: float) -> "_SubNetwork":
        if ratio not in self._cut:
            with torch.device("cpu"):
                self._cut[ratio] = _SubNetwork(self._untrained, ratio, self._context)
        return self._cut[ratio]


class _SubNetwork:
    """The shape of one sub-network, and where in the student each of its weights lies."""

    def __init__(self, model: nn.Module, ratio: float, context: Context) -> None:
        part = subnetwork_pruning(ratio)
        method = PRUNE.get(part.name)
        settings = method.config.of(part.values)
        with torch.random.fork_rng(devices=[]):
            self._shape, state = method.apply(model, settings, context)
            places = copy.deepcopy(model).double()
            for parameter in places.parameters():
                # A double holds the place of any weight exactly.
                numbers = torch.arange(parameter.numel(), dtype=torch.float64)
                parameter.data = numbers.view_as(parameter)
            places = method.restore(places, settings, state)
        self._places = {name: parameter.detach().long() for name, parameter in places.named_parameters()}
        self._shape.requires_grad_(False)

    def __call__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> object:
        """Return what the sub-network makes of a batch, with the weights that the student has now."""
        self._shape.train(model.training)
        whole = dict(model.named_parameters())
        device = inputs[0].device
        if any(place.device != device for place in self._places.values()):
            self._shape.to(device)
            self._places = {name: place.to(device) for name, place in self._places.items()}
        weights = {name: whole[name].flatten()[place] for name, place in self._places.items()}
        return functional_call(self._shape, weights, inputs)
