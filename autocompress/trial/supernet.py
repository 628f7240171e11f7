"""Sub-networks that share the weights of one student and are trained with it: one training gives a model per width."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from autocompress.core.config import Part
from autocompress.core.heads import as_head
from autocompress.core.method import Context
from autocompress.core.registry import PRUNE
from autocompress.core.task import logits_by_head
from autocompress.distill.kernels import output_distance

# Distance between the ratios of sampled sub-networks. The grid is coarse because each ratio is traced once.
RATIO_STEP = 0.05
# Number of sub-networks sampled for each batch in addition to the narrowest one.
SAMPLED_PER_BATCH = 2


def subnetwork_pruning(ratio: float) -> Part:
    """Return the pruning step that extracts a sub-network, whose channels include those of every narrower one.

    Args:
        ratio: Share of the channels that the sub-network omits.
    """
    return Part.of(
        "structured",
        pruning_ratio=ratio,
        criterion="order",
        scope="uniform",
        schedule="one_shot",
        recovery_epochs=0,
    )


class SubNetworks:
    """The auxiliary loss of sub-networks, by the sandwich rule with in-place distillation.

    On each batch, the narrowest sub-network and two sampled ones are distilled from the student, which itself learns
    from targets and teacher (Yu and Huang 2019, arXiv:1903.05134). They use the weights of the student without the
    omitted channels, and batch statistics of their own. Their running averages are discarded: batch norms are estimated
    again when a sub-network is extracted.

    Args:
        model: The student.
        heads: Head name to number of classes.
        context: The context of pruning methods, which holds an example for tracing.
        narrowest: Share of the channels that the narrowest sub-network omits.

    Raises:
        CompressionError: The student has no channels that can be omitted.
    """

    def __init__(self, model: nn.Module, heads: Mapping[str, int], context: Context, narrowest: float) -> None:
        self._model = model
        # Pruning checks the outputs of its result, which are not finite if the student's weights have diverged.
        self._untrained = copy.deepcopy(model)
        self._heads = heads
        self._context = context
        self._ratios = [round(RATIO_STEP * (step + 1), 2) for step in range(int(narrowest / RATIO_STEP))] or [narrowest]
        self._ratios[-1] = narrowest
        self._subnetworks: dict[float, _SubNetwork] = {}
        self._get_subnetwork(narrowest)

    def __call__(self, inputs: tuple[Tensor, ...], logits: Mapping[str, Tensor]) -> Tensor:
        """Return the mean divergence of the sub-networks from the student, summed over them, ``[]``."""
        # From torch's global generator, whose state a paused fit restores.
        indices = torch.randint(len(self._ratios), (SAMPLED_PER_BATCH,), device="cpu").tolist()
        losses = []
        for ratio in dict.fromkeys([self._ratios[-1], *(self._ratios[index] for index in indices)]):
            output = logits_by_head(self._get_subnetwork(ratio)(self._model, inputs), self._heads)
            # Detached: sub-networks learn from the student, not the other way round.
            for name, size in self._heads.items():
                losses.append(output_distance(as_head(size), output[name].float(), logits[name].detach()))
        return torch.stack(losses).sum() / len(self._heads)

    def _get_subnetwork(self, ratio: float) -> "_SubNetwork":
        if ratio not in self._subnetworks:
            with torch.device("cpu"):
                self._subnetworks[ratio] = _SubNetwork(self._untrained, ratio, self._context)
        return self._subnetworks[ratio]


class _SubNetwork:
    """The structure of one sub-network, and the positions of its weights in those of the student."""

    def __init__(self, model: nn.Module, ratio: float, context: Context) -> None:
        part = subnetwork_pruning(ratio)
        method = PRUNE.get(part.name)
        settings = method.config.of(part.values)
        with torch.random.fork_rng(devices=[]):
            self._module, state = method.apply(model, settings, context)
            # Pruning a copy whose weights are their own positions gives the positions of the sub-network's weights.
            positions = copy.deepcopy(model).double()
            for parameter in positions.parameters():
                # Double precision represents all integers up to 2^53 exactly.
                numbers = torch.arange(parameter.numel(), dtype=torch.float64)
                parameter.data = numbers.view_as(parameter)
            positions = method.restore(positions, settings, state)
        self._positions = {name: parameter.detach().long() for name, parameter in positions.named_parameters()}
        self._module.requires_grad_(False)

    def __call__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> object:
        """Return the output of the sub-network on a batch, with the current weights of the student."""
        self._module.train(model.training)
        student = dict(model.named_parameters())
        device = inputs[0].device
        if any(index.device != device for index in self._positions.values()):
            self._module.to(device)
            self._positions = {name: index.to(device) for name, index in self._positions.items()}
        weights = {name: student[name].flatten()[index] for name, index in self._positions.items()}
        return functional_call(self._module, weights, inputs)
