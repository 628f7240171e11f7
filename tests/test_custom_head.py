"""A detector with a loss, a metric and distillation of its own: searched, exported, and refused where it cannot be."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import autocompress
from autocompress.core.custom_head import CustomHead
from autocompress.core.registry import OBJECTIVES, TASKS
from autocompress.core.task import logits_by_head
from autocompress.errors import UsageError
from autocompress.export import pipeline

CELLS, CELL = 4, 8


@pytest.fixture(autouse=True)
def registry(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    for parts in (TASKS, OBJECTIVES):
        monkeypatch.setattr(parts, "_objects", {name: parts.get(name) for name in parts})


def draw_squares(count):
    """Return noisy images [N, 1, 32, 32] of one or two bright squares, and their boxes: x, y and side of each."""
    generator = torch.Generator().manual_seed(0)
    images, boxes = torch.rand(count, 1, 32, 32, generator=generator) * 0.2, []
    for image in images:
        found = []
        for _ in range(int(torch.randint(1, 3, (), generator=generator))):
            side = int(torch.randint(6, 11, (), generator=generator))
            x, y = torch.randint(0, 32 - side, (2,), generator=generator).tolist()
            image[0, y : y + side, x : x + side] = 1
            found.append([x + side / 2, y + side / 2, side])
        boxes.append({"boxes": torch.tensor(found)})
    return images, boxes


class Detector(nn.Module):
    """A score, an offset and a side for each cell of a grid."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 12, 3, 2, 1), nn.Conv2d(12, 24, 3, 2, 1)
        self.third, self.head = nn.Conv2d(24, 24, 3, 2, 1), nn.Conv2d(24, 4, 1)

    def forward(self, images):
        hidden = self.second(self.first(images).relu()).relu()
        return self.head(self.third(hidden).relu())


def fill_grid(targets):
    """Return presence, offsets and side for each cell, [B, 4, 4, 4]."""
    grid = torch.zeros(len(targets), 4, CELLS, CELLS)
    for cells, target in zip(grid, targets, strict=True):
        for x, y, side in target["boxes"].tolist():
            column, row = int(x // CELL), int(y // CELL)
            cells[:, row, column] = torch.tensor([1, x / CELL - column, y / CELL - row, side / CELL])
    return grid


def detection_loss(outputs, targets):
    grid = fill_grid(targets)
    present = grid[:, :1]
    distance = (outputs[:, 1:] - grid[:, 1:]).square() * present
    return F.binary_cross_entropy_with_logits(outputs[:, :1], present) + distance.sum() / present.sum().clamp(min=1)


def average_precision(outputs, targets):
    """Return the average precision at an intersection over union of one half."""
    grid = fill_grid(targets)
    low, high = ([part[:, 1:3] + sign * part[:, 3:] / 2 for part in (outputs, grid)] for sign in (-1, 1))
    inner = (torch.minimum(*high) - torch.maximum(*low)).clamp(min=0).prod(1)
    union = outputs[:, 3].square() + grid[:, 3].square() - inner
    is_hit = ((inner / union.clamp(min=1e-6) > 0.5) & (grid[:, 0] > 0)).flatten()
    order = outputs[:, 0].flatten().argsort(descending=True)
    hits = is_hit[order].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return (precision * hits).sum() / (grid[:, 0] > 0).sum().clamp(min=1)


def distill_boxes(student, teacher, targets):
    """Return the squared difference of the scores, and of the boxes where the teacher sees one."""
    seen = teacher[:, :1].sigmoid()
    boxes = ((student[:, 1:] - teacher[:, 1:]).square() * seen).mean()
    return (student[:, :1] - teacher[:, :1]).square().mean() + boxes


def train_detector(images, boxes):
    torch.manual_seed(0)
    model = Detector()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(8):
        for start in range(0, len(images), 50):
            rows = slice(start, start + 50)
            loss = detection_loss(model(images[rows]), boxes[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


SETTINGS = (
    *("search.backend=serial", "search.timing_seconds=0", "pick.max_drop=0.5"),
    *("student.from_teacher={pruning_ratio: 0.2}", "fit.adamw={epochs: 8, learning_rate: 5e-3, batch_size: 50}"),
    *("distill={soft_target: {alpha: 0.5}}", "quantize={post_training: {weight_bits: 8, activation_bits: 8}}"),
)


@pytest.mark.slow
def test_a_detector_is_pruned_quantized_distilled_and_exported(tmp_path):
    images, boxes = draw_squares(500)
    head = CustomHead(detection_loss, {"map": average_precision}, distillation=distill_boxes)
    data = autocompress.Tensors((images, boxes), kinds=head)
    front = autocompress.search(
        teacher=train_detector(images, boxes), data=data, trials=1, runs=tmp_path, overrides=SETTINGS
    )
    teacher = front.meta["teacher"]["scores"]["select_val"]
    candidate = front.candidates.set_index("id").loc["t0c0"]
    assert front.meta["objectives"][0]["name"] == "map"
    assert teacher["map"] > 0.5
    assert candidate["map"] > teacher["map"] - 0.2
    assert candidate["task_loss"] < 1
    assert candidate["flops"] < 0.8 * front.meta["teacher"]["costs"]["flops"]
    folder = front.export("t0c0")
    predicted = pipeline.load(folder).predict(images[0].numpy())["output"]["outputs"]
    assert torch.tensor(predicted).shape == (4, CELLS, CELLS)
    assert "map" in (front.folder / "report.html").read_text()


class Named(nn.Module):
    """Several outputs, in whatever form."""

    def __init__(self, form):
        super().__init__()
        self.scores, self.boxes, self.form = nn.Linear(6, 3), nn.Linear(6, 4), form

    def forward(self, x):
        return self.form(self.scores(x), self.boxes(x))


X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
TARGETS = [{"boxes": torch.zeros(row % 3, 4)} for row in range(60)]


def mean_square(outputs, targets):
    return (
        sum(values.square().mean() for values in outputs.values())
        if isinstance(outputs, dict)
        else outputs.square().mean()
    )


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (lambda a, b: {"scores": a, "boxes": b, "hidden": None}, ["scores", "boxes"]),
        (lambda a, b: (a, b), ["output_0", "output_1"]),
        (lambda a, b: [a], ["output"]),
        (lambda a, b: {"scores": a}, ["output"]),
        (lambda a, b: a, ["output"]),
    ],
)
def test_several_outputs_are_heads_of_one_loss(form, names):
    task = autocompress.bring_model(Named(form), (X, TARGETS), kinds=CustomHead(mean_square))
    assert list(task.heads) == names
    assert task.metrics == ("task_loss",)
    model, train = task.build(task.teacher()[0]), task.splits(0).train
    outputs = logits_by_head(model(*train.inputs), task.heads)
    assert float(task.loss(outputs, train.targets).detach()) > 0


@pytest.mark.parametrize(
    "targets",
    [
        {"boxes": torch.zeros(60, 2, 4), "label": list(range(60))},
        torch.zeros(60, 5),
        [(X[row], [1] * (row % 2)) for row in range(60)],
    ],
)
def test_targets_are_mappings_arrays_or_lists(targets):
    task = autocompress.Tensors((X, targets), kinds=CustomHead(mean_square))
    bound, train = task.heads["output"].bound, task.splits(0).train
    assert len(bound.items) == 60
    assert bound.items[int(train.targets["output"][3, 0])] is not None
    assert task.splits(0).train.inputs[0].equal(X[train.targets["output"][:, 0]])


def test_items_of_a_data_set_keep_their_targets():
    items = [(X[row], TARGETS[row]) for row in range(60)]
    loader = torch.utils.data.DataLoader(items, batch_size=2, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
    for data in (items, loader):
        task = autocompress.Tensors(data, kinds=CustomHead(mean_square))
        assert [len(item["boxes"]) for item in task.heads["output"].bound.items[:4]] == [0, 1, 2, 0]


def test_other_targets_are_other_data():
    first, second = (
        autocompress.Tensors((X, targets), kinds=CustomHead(mean_square))
        for targets in (TARGETS, [*TARGETS[:-1], {"boxes": torch.ones(2, 4)}])
    )
    assert first.splits(0).fingerprint() != second.splits(0).fingerprint()


class Fickle(nn.Linear):
    """Raw outputs in training, and decoded ones otherwise."""

    def forward(self, x):
        return super().forward(x) if self.training else super().forward(x).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        (
            nn.Linear(6, 4),
            CustomHead(lambda o, t: o.sum(), {"map": lambda o, t: 1 / 0}),
            "'map' fails on .* ZeroDivision",
        ),
        (nn.Linear(6, 4), CustomHead(mean_square, {"map": lambda o, t: float("nan")}), "'map' is nan on"),
        (nn.Linear(6, 4), CustomHead(mean_square, {"accuracy": len}), "'accuracy' has the name of another score"),
        (nn.Linear(6, 4), CustomHead(mean_square, {"map": len}, {"mpa": True}), "'mpa', which is no metric.*'map'"),
        (nn.Linear(6, 4), CustomHead(mean_square, {"a b": len}), "a metric cannot be called 'a b'"),
        (nn.Linear(6, 4), CustomHead(lambda o, t: o.sum() * float("nan")), "loss is nan"),
        (nn.Linear(6, 4), CustomHead(lambda o, t: o.argmax(1).float().mean()), "loss has no gradient"),
        (
            nn.Linear(6, 4),
            CustomHead(lambda o, t: (o - torch.stack([b["boxes"] for b in t])).mean()),
            r"\[8, 4\].*stack",
        ),
        (nn.Linear(6, 4), CustomHead(mean_square, distillation=lambda s, t, y: s - t), "distillation"),
        (nn.Linear(6, 4), CustomHead(mean_square, collate=lambda items: items[99]), "loss fails .* IndexError"),
        (Fickle(6, 4), CustomHead(mean_square), "in training mode"),
        (Named(lambda a, b: [{"scores": a}]), CustomHead(mean_square), "needs a tensor"),
    ],
)
def test_a_head_that_cannot_work_is_refused_before_anything_is_trained(model, head, message):
    with pytest.raises(UsageError, match=message):
        autocompress.bring_model(model, (X, TARGETS), kinds=head)


@pytest.mark.parametrize(
    ("targets", "message"),
    [(TARGETS[:50], "different lengths"), (7, "targets are int"), ({"a": [1], "b": [1, 2]}, "different lengths")],
)
def test_targets_without_an_entry_for_each_example_are_refused(targets, message):
    with pytest.raises(UsageError, match=message):
        autocompress.Tensors((X, targets), kinds=CustomHead(mean_square))


def test_a_loss_beside_the_head_is_refused():
    with pytest.raises(UsageError, match="loss and a CustomHead"):
        autocompress.bring_model(nn.Linear(6, 4), (X, TARGETS), kinds=CustomHead(mean_square), loss=mean_square)


def test_metrics_without_names_are_refused():
    head = CustomHead(lambda outputs, targets: outputs.mean(), metrics=[lambda outputs, targets: 1.0])
    with pytest.raises(UsageError, match="metrics is no mapping of names to functions"):
        autocompress.Tensors((torch.randn(50, 2), [1.0] * 50), kinds=head)
