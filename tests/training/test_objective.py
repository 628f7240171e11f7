from contextlib import ExitStack

import pytest
import torch
from torch import nn

from autocompress.core.config import Part
from autocompress.distill.base import Batch
from autocompress.distill.feature_losses import attention_map
from autocompress.tasks.images import Digits
from autocompress.training.fit import FitRequest, fit, predict
from autocompress.training.objective import TrainingObjective
from autocompress.training.optimizers import fit_config
from tests.training.light import Light, Wide, examples, network

TASK = Digits()
BATCH = TASK.splits(0).train.take(slice(0, 12))


class Live:
    """An untrained teacher, live or by its outputs on the batch."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        self.model = TASK.build(Part.of("cnn", width=6, depth=1)).eval()

    def view(self, index: int) -> dict[str, torch.Tensor]:
        return predict(self.model, TASK, BATCH)


def loss(*terms: Part) -> float:
    torch.manual_seed(0)
    model = TASK.build(Part.of("cnn", width=4, depth=1))
    objective = TrainingObjective.from_terms([Part("none"), *terms], TASK, fit_config(Part("adamw")), Live(), 0)
    with ExitStack() as stack, torch.no_grad():
        objective.attach_hooks(stack, model)
        objective.build_adapters(BATCH)
        model.eval()
        return float(objective.loss(BATCH, objective.cached_logits(0), torch.Generator()))


def test_terms_add_up_and_each_reads_its_own_layer() -> None:
    terms = [
        Part.of("hint", layer="last"),
        Part.of("attention", layer="first", weight=3.0),
        Part.of("relational", layer="logits"),
    ]
    plain = loss()
    assert loss(*terms) - plain == pytest.approx(sum(loss(term) - plain for term in terms), rel=1e-3)
    assert loss(Part.of("attention", layer="first")) != loss(Part.of("attention", layer="last"))


def test_the_layer_that_is_read_is_the_one_that_was_named() -> None:
    torch.manual_seed(0)
    model = TASK.build(Part.of("cnn", width=4, depth=1)).eval()
    maps = []
    for net in (model, Live().model):
        with torch.no_grad():
            maps.append(attention_map(net.stages[0](net.stem(BATCH.inputs[0]))))  # type: ignore[index, operator]
    objective = TrainingObjective.from_terms(
        [Part("none"), Part.of("attention", layer="first", weight=1.0)], TASK, fit_config(Part("adamw")), Live(), 0
    )
    with ExitStack() as stack, torch.no_grad():
        objective.attach_hooks(stack, model)
        objective.build_adapters(BATCH)
        student, teacher = (
            objective.student.compute_activations(BATCH.inputs),
            objective.teacher_model.compute_activations(BATCH.inputs),
        )  # type: ignore[union-attr]
        term, settings = objective.terms[1]
        actual = term.loss(
            settings, Batch(*objective._select_activations(1, student, teacher), {}, None, objective.adapters[1])
        )  # type: ignore[arg-type]
    assert actual.item() == pytest.approx((maps[0] - maps[1]).square().sum(1).mean().item(), rel=1e-4)


def test_what_a_term_learns_starts_alike_and_leaves_the_random_numbers_alone() -> None:
    actual = []
    for before in (1, 2):
        model, teacher = network(), Wide()
        torch.manual_seed(before)
        terms = [Part("none"), Part("hint")]
        fit(model, FitRequest(Light(), examples(), Part.of("adamw", epochs=1), terms=terms, teacher=teacher, seed=5))
        actual.append(model[0].weight)  # type: ignore[index]
        drawn = torch.rand(1)
        torch.manual_seed(before)
        assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(*actual)


def test_a_live_teacher_of_another_kind_of_network_can_be_read() -> None:
    class Tokens(nn.Module):
        """Rows of the image as tokens."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed = nn.Linear(8, width)
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, 2, 16, batch_first=True) for _ in range(2))
            self.head = nn.Linear(width, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x.squeeze(1))
            for layer in self.layers:
                x = layer(x)
            return self.head(x.mean(1))

    teacher = Live()
    teacher.model = Tokens(12).eval()
    terms = [Part("none"), Part("hint"), Part("attention"), Part("relational")]
    for student in (Tokens(8), TASK.build(Part.of("cnn", width=4))):
        if not isinstance(student, Tokens):
            # An image and a sequence have unlike positions; what they mean together is compared all the same.
            terms = [Part("none"), Part("relational")]
        curve = fit(
            student, FitRequest(TASK, BATCH, Part.of("adamw", epochs=3, batch_size=12), terms=terms, teacher=teacher)
        ).curve
        assert curve[-1]["loss"] < curve[0]["loss"]
