"""Kinds of heads: the form of outputs and targets, the loss, and the predictions.

    kind         outputs                 targets                                       rows of class logits
    classes      [B, C]                  class indices [B]                             [B, C]
    levels       [B, C]                  the same; each class is a number              [B, C]
    candidates   [B, K]                  position of the true candidate [B]            [B, K]
    binary       [B] or [B, 1]           0 or 1, [B]                                   [B, 2]
    multilabel   [B, L]                  0 or 1, [B, L]                                [B L, 2]
    dense        [B, C, ...]             class indices [B, ...], e.g. of pixels        [B P, C]
    tags         [B, T, C]               class indices [B, T], of tokens               [B T, C]
    regression   [B, D] or [B]           numbers [B, D] or [B]                         none
    detection    [B, C + 5, h, w]        classes and boxes [B, M, 5], see `core.boxes` none
    custom       [B, ...]                any, see `core.custom_head`                   none

All kinds but the last three have *rows*: logits of one decision each, ``[M, C]``, with a class index each, ``[M]``.
Losses, distillation terms and scores are written for rows, so they serve every kind. A label that is missing is
``IGNORED``, or NaN for a number; it counts in no loss and no score.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.core import boxes
from autocompress.core.custom_head import TASK_LOSS, BoundHead, measure_distance
from autocompress.errors import TrialError

#: Class index of a missing label; torch's cross-entropy leaves it out by default.
IGNORED = -100

#: Probability of the second of two classes above which it is predicted.
DEFAULT_THRESHOLD = 0.5
REGRESSION_LOSSES = ("mse", "mae", "huber", "quantile")


class Head(int):
    """The number of outputs of a head, with the kind of its targets; this class is one class index per example.

    A plain ``int`` in a mapping of heads has the same meaning, see :func:`as_head`. Subclasses are the other kinds.

    Args:
        size: Number of outputs: classes, labels or values.
        metric: Name of the score that sums up this head, larger is better: accuracy by default.
        threshold: Probability of the second of two classes above which it is predicted; ``None`` for 0.5.

    Example:
        >>> Head(3).loss(torch.zeros(2, 3), torch.tensor([0, IGNORED])).item() == torch.tensor(3.0).log().item()
        True
    """

    kind: ClassVar[str] = "classes"
    has_classes: ClassVar[bool] = True
    has_values: ClassVar[bool] = False
    has_positions: ClassVar[bool] = False
    metric: str
    # Of the class: a head without a threshold is stored as it was before there were any.
    threshold: float | None = None

    def __new__(cls, size: int, metric: str = "accuracy", threshold: float | None = None) -> Self:
        """Return a head of ``size`` outputs.

        Raises:
            TrialError: There is a threshold, and the head has not two classes.
        """
        head = super().__new__(cls, size)
        # An int has no fields in its constructor, so they are attributes.
        head.metric = metric
        return head.with_threshold(threshold)

    @property
    def has_threshold(self) -> bool:
        """Whether a threshold decides between its two classes."""
        return self.kind in ("classes", "binary") and self.classes == 2

    def with_threshold(self, threshold: float | None) -> Self:
        """Return the head with a threshold; ``None`` for the default.

        Raises:
            TrialError: The head has not two classes, or the threshold is no probability between 0 and 1.

        Example:
            >>> Head(2).with_threshold(0.2).predict(torch.tensor([[1.0, 0.0], [3.0, 0.0]])).tolist()
            [1, 0]
        """
        if threshold is None and self.threshold is None:
            return self
        if threshold is not None and not (self.has_threshold and 0 < threshold < 1):
            raise TrialError(f"a threshold of {threshold} does not fit a head of {self.describe()}")
        head = int.__new__(type(self), int(self))
        head.__dict__.update({name: value for name, value in vars(self).items() if name != "threshold"})
        if threshold is not None:
            head.threshold = float(threshold)
        return head

    def shift_rows(self, rows: Tensor) -> Tensor:
        """Return class logits ``[M, C]`` whose largest is the predicted class: those of the head's threshold."""
        return rows if self.threshold is None else rows - rows.new_tensor([0.0, _logit(self.threshold)])

    def shift_outputs(self, outputs: Tensor) -> Tensor:
        """Return outputs from which the same head without a threshold predicts the same classes.

        Example:
            >>> Binary(threshold=0.2).shift_outputs(torch.tensor([[0.0]])).round(decimals=3)
            tensor([[1.3860]])
        """
        return self.shift_rows(outputs)

    def __getnewargs_ex__(self) -> tuple[tuple[int], dict[str, object]]:
        """Return the arguments with which pickle and copy build the head again."""
        return (int(self),), dict(vars(self))

    @property
    def classes(self) -> int:
        """Number of classes of each row."""
        return int(self)

    @property
    def named_outputs(self) -> int:
        """Number of names that a user gives: of classes, or of labels."""
        return self.classes

    def flatten(self, outputs: Tensor) -> Tensor:
        """Return the class logits of every decision, ``[M, C]``.

        Raises:
            TrialError: The outputs have another form.
        """
        if outputs.dim() != 2:
            raise TrialError(f"outputs {list(outputs.shape)} do not fit a head of {self.describe()}: give [B, {self}]")
        return outputs

    def flatten_targets(self, targets: Tensor) -> Tensor:
        """Return the class index of every decision, ``[M]``."""
        return targets

    def select_rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class logits ``[M, C]`` and class indices ``[M]`` of the labelled decisions.

        Raises:
            TrialError: Outputs and targets do not fit.
        """
        rows, labels = self.flatten(outputs), self.flatten_targets(targets)
        if len(rows) != len(labels):
            raise TrialError(
                f"outputs {list(outputs.shape)} do not fit targets {list(targets.shape)} of a head of {self.describe()}"
            )
        is_labelled = labels != IGNORED
        # Most heads have every label; indexing would copy the logits.
        return (rows, labels) if bool(is_labelled.all()) else (rows[is_labelled], labels[is_labelled])

    def pair_rows(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return class logits of student and teacher ``[M, C]`` and class indices ``[M]`` for distillation.

        A teacher answers without a label as well, so every example counts. Of positions, such as tokens, only those
        with a label count, because the others are padding, unless nothing has a label.

        Args:
            student: Outputs of the student.
            teacher: Outputs of the teacher.
            targets: Targets; a missing label is replaced by the teacher's most probable class.
        """
        # Both are flattened in the same way, so that row i of one belongs to row i of the other.
        ours, theirs = self.flatten(student), self.flatten(teacher)
        if targets is None:
            return ours, theirs, theirs.argmax(1)
        labels = self.flatten_targets(targets)
        is_labelled = labels != IGNORED
        if bool(is_labelled.all()):
            return ours, theirs, labels
        if self.has_positions and bool(is_labelled.any()):
            return ours[is_labelled], theirs[is_labelled], labels[is_labelled]
        return ours, theirs, torch.where(is_labelled, labels, theirs.argmax(1))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over the labelled decisions, ``[]``; 0 if there is none."""
        rows, labels = self.select_rows(outputs, targets)
        # A mean over nothing would be NaN; the product keeps the graph.
        return F.cross_entropy(rows, labels) if len(rows) else outputs.sum() * 0

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of each example, ``[B]``; 0 for an example without a label."""
        # torch gives a loss of 0 to ignored rows.
        of_row = F.cross_entropy(self.flatten(outputs), self.flatten_targets(targets), reduction="none")
        return of_row.reshape(len(outputs), -1).mean(1)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance that distillation minimizes where there are no class logits, ``[]``."""
        raise TrialError(f"a head of {self.describe()} is distilled on its class logits")

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the predicted class of each decision, in the form of the targets."""
        return self.shift_rows(self.flatten(outputs)).argmax(1)

    def compare_predictions(self, predictions: Tensor, expected: Tensor) -> float:
        """Return the share of predictions that equal the expected ones."""
        return float((predictions == expected).double().mean())

    def describe(self) -> str:
        """Return the head as text: ``10 classes``."""
        return f"{int(self)} classes"

    def to_json(self) -> int | dict[str, object]:
        """Return the head as a JSON value: a number for plain classes."""
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        if type(self) is Head and self.metric == "accuracy" and self.threshold is None:
            return int(self)
        return {"kind": self.kind, "size": int(self), **settings}


class Levels(Head):
    """Classes that are numbers, such as ratings; the prediction is their mean under the softmax of the logits.

    Args:
        size: Number of classes.
        metric: Name of the score that sums up this head.
        levels: Value of each class, ``[C]``.

    Example:
        >>> Levels(2, levels=(1.0, 5.0)).to_json()
        {'kind': 'levels', 'size': 2, 'metric': 'r2', 'levels': [1.0, 5.0]}
    """

    kind = "levels"
    has_values = True
    levels: tuple[float, ...]

    def __new__(cls, size: int, metric: str = "r2", levels: tuple[float, ...] = ()) -> Self:
        """Return a head of ``size`` values."""
        if len(levels) != size:
            raise TrialError(f"there are {len(levels)} levels for {size} classes; give one value for each class")
        head = super().__new__(cls, size, metric)
        head.levels = tuple(levels)
        return head

    def describe(self) -> str:
        """Return the head as text."""
        return f"{int(self)} levels"


class Candidates(Head):
    """The score of each candidate of a list, such as items to recommend; the target is the position of the true one.

    Example:
        >>> Candidates(50).describe()
        '50 candidates'
    """

    kind = "candidates"

    def __new__(cls, size: int, metric: str = "ndcg_at_10") -> Self:
        """Return a head of ``size`` candidates."""
        return super().__new__(cls, size, metric)

    def describe(self) -> str:
        """Return the head as text."""
        return f"{int(self)} candidates"


class Binary(Head):
    """One logit per example, whose sigmoid is the probability of class 1.

    Example:
        >>> Binary().predict(torch.tensor([[2.0], [-1.0]])).tolist()
        [1, 0]
    """

    kind = "binary"

    def __new__(cls, size: int = 1, metric: str = "accuracy", threshold: float | None = None) -> Self:
        """Return a head of one logit."""
        return super().__new__(cls, size, metric, threshold)

    @property
    def classes(self) -> int:
        """Two: no and yes."""
        return 2

    def shift_outputs(self, outputs: Tensor) -> Tensor:
        """Return logits whose sign is the class that is predicted at the threshold."""
        return outputs if self.threshold is None else outputs - _logit(self.threshold)

    def flatten(self, outputs: Tensor) -> Tensor:
        """Return logits of two classes: a sigmoid of z is a softmax of (0, z)."""
        if outputs.dim() > 2 or (outputs.dim() == 2 and outputs.shape[1] != 1):
            raise TrialError(f"outputs {list(outputs.shape)} do not fit a head of {self.describe()}: give [B, 1]")
        return _as_two_classes(outputs.reshape(-1))

    def flatten_targets(self, targets: Tensor) -> Tensor:
        """Return 0 or 1 for each example, ``[B]``."""
        return _as_indices(targets.reshape(-1))

    def describe(self) -> str:
        """Return the head as text."""
        return "one logit of two classes"


class MultiLabel(Head):
    """Several labels per example, each with a logit of its own: the distance to a teacher is a Bernoulli KL divergence.

    Example:
        >>> MultiLabel(3).predict(torch.tensor([[2.0, -1.0, 1.0]])).tolist()
        [[1, 0, 1]]
    """

    kind = "multilabel"

    @property
    def classes(self) -> int:
        """Two for each label: no and yes."""
        return 2

    @property
    def named_outputs(self) -> int:
        """Number of labels."""
        return int(self)

    def flatten(self, outputs: Tensor) -> Tensor:
        """Return logits of two classes for each label, ``[B L, 2]``; labels may have several axes, as pixels have."""
        return _as_two_classes(outputs.reshape(-1))

    def flatten_targets(self, targets: Tensor) -> Tensor:
        """Return 0 or 1 for each label of each example, ``[B L]``."""
        return _as_indices(targets.reshape(-1))

    def predict(self, outputs: Tensor) -> Tensor:
        """Return 0 or 1 for each label, ``[B, L]``."""
        return (outputs > 0).long()

    def describe(self) -> str:
        """Return the head as text."""
        return f"{int(self)} labels"


class Dense(Head):
    """A class for each position, such as a pixel; the classes are on axis 1, as torch's cross-entropy takes them.

    Example:
        >>> Dense(3).flatten(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([128, 3])
    """

    kind = "dense"
    has_positions = True
    class_axis: ClassVar[int] = 1

    def flatten(self, outputs: Tensor) -> Tensor:
        """Return the logits of each position, ``[B P, C]``."""
        if outputs.dim() < 3 or outputs.shape[self.class_axis] != int(self):
            raise TrialError(f"outputs {list(outputs.shape)} do not fit a head of {self.describe()}")
        # Rows of one example stay together, in the order of its targets.
        return outputs.movedim(self.class_axis, -1).reshape(-1, int(self))

    def flatten_targets(self, targets: Tensor) -> Tensor:
        """Return the class of each position, ``[B P]``."""
        return targets.reshape(-1)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the predicted class of each position, ``[B, ...]``."""
        return outputs.argmax(self.class_axis)

    def describe(self) -> str:
        """Return the head as text."""
        return f"{int(self)} classes at each position"


class Tags(Dense):
    """A class for each token; the classes are on the last axis, as token classifiers return them.

    Example:
        >>> Tags(5).predict(torch.zeros(2, 7, 5)).shape
        torch.Size([2, 7])
    """

    kind = "tags"
    class_axis = -1

    def __new__(cls, size: int, metric: str = "entity_f1") -> Self:
        """Return a head of ``size`` tags."""
        return super().__new__(cls, size, metric)

    def describe(self) -> str:
        """Return the head as text."""
        return f"{int(self)} tags for each token"


class Regression(Head):
    """Numbers; losses and distances are measured in standard deviations of the training targets.

    Args:
        size: Number of values per example.
        metric: Name of the score that sums up this head.
        scale: Standard deviation of each value over the training split, ``[D]``; 1 by default.
        loss_name: ``mse``, ``mae``, ``huber`` (with threshold 1; Huber 1964) or ``quantile`` (pinball loss).
        quantile: Quantile that ``quantile`` predicts.
        center: Mean of each value over the training split, ``[D]``, where an untrained model may start; 0 by default.

    Example:
        >>> Regression(1, scale=(2.0,)).loss(torch.tensor([[1.0]]), torch.tensor([[5.0]])).item()
        4.0
    """

    kind = "regression"
    has_classes = False
    has_values = True
    scale: tuple[float, ...]
    loss_name: str
    quantile: float
    center: tuple[float, ...]

    def __new__(
        cls,
        size: int = 1,
        metric: str = "r2",
        scale: tuple[float, ...] = (),
        loss_name: str = "mse",
        quantile: float = 0.5,
        center: tuple[float, ...] = (),
    ) -> Self:
        """Return a head of ``size`` values."""
        if loss_name not in REGRESSION_LOSSES:
            raise TrialError(f"the loss of a regression is one of {', '.join(REGRESSION_LOSSES)}, not {loss_name!r}")
        head = super().__new__(cls, size, metric)
        head.scale, head.loss_name, head.quantile = tuple(scale) or (1.0,) * size, loss_name, quantile
        head.center = tuple(center) or (0.0,) * size
        return head

    @property
    def classes(self) -> int:
        """Zero: there are no classes."""
        return 0

    def flatten(self, outputs: Tensor) -> Tensor:
        """Raise an error, because values are no class logits.

        Raises:
            TrialError: Always.
        """
        raise TrialError(f"a head of {self.describe()} has no classes; use r2, rmse or mae")

    def select_values(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions and true values ``[B, D]``, both in units of the targets.

        Raises:
            TrialError: Outputs and targets do not fit.
        """
        ours, theirs = outputs.reshape(len(outputs), -1), targets.reshape(len(targets), -1)
        if ours.shape != theirs.shape:
            raise TrialError(f"outputs {list(outputs.shape)} do not fit targets {list(targets.shape)} of a regression")
        return ours, theirs.to(ours.dtype)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over all values that are known, ``[]``; 0 if there is none."""
        ours, theirs = self.select_values(outputs, targets)
        difference = (theirs - ours) / self._scales(ours)
        # Selected instead of masked by a factor, because NaN times 0 is NaN.
        difference = difference[~theirs.isnan()]
        return self._penalize(difference).mean() if difference.numel() else outputs.sum() * 0

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of each example, ``[B]``; a missing value has a loss of 0."""
        ours, theirs = self.select_values(outputs, targets)
        return self._penalize(((theirs - ours) / self._scales(ours)).nan_to_num(0.0)).mean(1)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean squared difference in standard deviations of the targets, ``[]``."""
        ours, theirs = self.select_values(student, teacher)
        return ((ours - theirs) / self._scales(ours)).square().mean()

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the values themselves."""
        return outputs

    def compare_predictions(self, predictions: Tensor, expected: Tensor) -> float:
        """Return the share of values that differ by at most a hundredth of a standard deviation."""
        ours, theirs = self.select_values(predictions, expected)
        return float((((ours - theirs) / self._scales(ours)).abs() <= 0.01).double().mean())

    def describe(self) -> str:
        """Return the head as text."""
        return "one number" if self == 1 else f"{int(self)} numbers"

    def _penalize(self, difference: Tensor) -> Tensor:
        if self.loss_name == "mae":
            return difference.abs()
        if self.loss_name == "huber":
            return F.huber_loss(difference, torch.zeros_like(difference), reduction="none")
        if self.loss_name == "quantile":
            # Koenker and Bassett 1978: undershooting costs q, overshooting 1 - q.
            return torch.maximum(self.quantile * difference, (self.quantile - 1) * difference)
        return difference.square()

    def _scales(self, like: Tensor) -> Tensor:
        return torch.tensor(self.scale, dtype=like.dtype, device=like.device)


class Detection(Head):
    """The boxes of objects and their classes, from maps of a grid; see :mod:`autocompress.core.boxes`.

    Args:
        size: Number of classes.
        metric: Name of the score that sums up this head.
        least_score: Smallest score of a box that is predicted; metrics and comparisons read boxes of lower scores.

    Example:
        >>> Detection(4).to_json()
        {'kind': 'detection', 'size': 4, 'metric': 'mean_ap', 'least_score': 0.3}
    """

    kind = "detection"
    has_classes = False
    has_positions = True
    least_score: float

    def __new__(cls, size: int, metric: str = "mean_ap", least_score: float = 0.3) -> Self:
        """Return a head of ``size`` classes."""
        head = super().__new__(cls, size, metric)
        head.least_score = least_score
        return head

    @property
    def classes(self) -> int:
        """Zero: no output is the logit of a class alone."""
        return 0

    @property
    def named_outputs(self) -> int:
        """Number of classes of boxes."""
        return int(self)

    def flatten(self, outputs: Tensor) -> Tensor:
        """Raise an error, because the maps are no class logits.

        Raises:
            TrialError: Always.
        """
        raise TrialError(f"a head of {self.describe()} has boxes; use mean_ap or mean_ap_50")

    def check_maps(self, outputs: Tensor) -> None:
        """Check the shape of the maps of a detector.

        Raises:
            TrialError: It is another one.
        """
        if outputs.dim() != 4 or outputs.shape[1] != int(self) + boxes.BOX_OUTPUTS:
            raise TrialError(
                f"outputs {list(outputs.shape)} do not fit a head of {self.describe()}: give "
                f"[B, {int(self) + boxes.BOX_OUTPUTS}, h, w]"
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, ``[]``: that of the cells, divided by the number of cells that learn a box."""
        return self.losses(outputs, targets).mean()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, ``[B]``, whose mean is the loss of the batch.

        Classes have the focal loss (Lin et al. 2017, arXiv:1708.02002), boxes 1 - generalized IoU, and the predicted
        IoU a cross-entropy with the true one; the last two are losses of cells that learn a box.
        """
        self.check_maps(outputs)
        # Corners of boxes need more digits than half precision has.
        outputs = outputs.float()
        numbers = boxes.assign_boxes(targets, *outputs.shape[2:])
        is_object = numbers >= 0
        if targets.shape[1]:
            rows = torch.arange(len(targets), device=targets.device)[:, None]
            own = targets[rows, numbers.clamp(min=0)]
        else:
            own = targets.new_zeros(*numbers.shape, 5)
        logits = outputs[:, : int(self)].flatten(2).movedim(1, -1)
        present = is_object[..., None] & (own[..., :1] == torch.arange(int(self), device=targets.device))
        iou, generalized = boxes.measure_iou(boxes.decode_boxes(outputs), own[..., 1:])
        quality = outputs[:, -boxes.BOX_OUTPUTS].flatten(1)
        quality_loss = F.binary_cross_entropy_with_logits(quality, iou.detach(), reduction="none")
        of_object = (1 - generalized + quality_loss) * is_object
        total = _focal_loss(logits, present.to(logits.dtype)).sum((1, 2)) + of_object.sum(1)
        return total * (len(outputs) / is_object.sum().clamp(min=1))

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance from a teacher's maps, ``[]``, per object that the teacher sees.

        It is the KL divergence of Bernoulli distributions for each class in each cell, and, weighted by the teacher's
        score of the cell, that of the predicted IoU and the L1 distance of the boxes' centers and sizes in cells.
        """
        self.check_maps(student)
        if student.shape != teacher.shape:
            raise TrialError(
                f"the student's maps {list(student.shape)} do not fit the teacher's {list(teacher.shape)}: both need "
                "one grid"
            )
        student, teacher = student.float(), teacher.float()
        kl = _bernoulli_kl(student[:, : -boxes.BOX_OUTPUTS + 1], teacher[:, : -boxes.BOX_OUTPUTS + 1])
        seen = boxes.score_cells(teacher)
        ours, theirs = (torch.cat([maps[:, -4:-2], F.softplus(maps[:, -2:])], 1) for maps in (student, teacher))
        weighted = seen * (kl[:, -1] + (ours - theirs).abs().sum(1))
        return (kl[:, :-1].sum() + weighted.sum()) / seen.sum().clamp(min=1)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return class, score and box of the objects of each example, best first, ``[B, K, 6]``.

        Boxes of half of the smallest score are among them, with which :meth:`compare_predictions` compares.
        """
        self.check_maps(outputs)
        return boxes.select_boxes(outputs, self.least_score / 2)

    def compare_predictions(self, predictions: Tensor, expected: Tensor) -> float:
        """Return the share of boxes with one of the same class in the other prediction, IoU above 0.8."""
        return boxes.compare_boxes(predictions, expected, self.least_score)

    def describe(self) -> str:
        """Return the head as text."""
        return f"boxes of {int(self)} classes"


class Custom(Head):
    """One raw output of a model whose loss and metrics are the user's; they read all outputs together.

    Args:
        size: Number of values of one example.
        metric: Name of the score that sums up the task.
        bound: The user's functions and the targets; ``None`` in an exported model, which needs neither.

    Example:
        >>> Custom(128, "map").to_json()
        {'kind': 'custom', 'size': 128, 'metric': 'map'}
    """

    kind = "custom"
    has_classes = False
    bound: BoundHead | None

    def __new__(cls, size: int, metric: str = TASK_LOSS, bound: BoundHead | None = None) -> Self:
        """Return a head of ``size`` values."""
        head = super().__new__(cls, size, metric)
        head.bound = bound
        return head

    @property
    def classes(self) -> int:
        """Zero: there are no classes."""
        return 0

    def flatten(self, outputs: Tensor) -> Tensor:
        """Raise an error, because the outputs are no class logits.

        Raises:
            TrialError: Always.
        """
        raise TrialError(f"a head of {self.describe()} has no classes; use its own metrics, such as {self.metric}")

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean squared difference in standard deviations of the teacher's outputs, ``[]``."""
        return measure_distance(student, teacher)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the outputs themselves."""
        return outputs

    def compare_predictions(self, predictions: Tensor, expected: Tensor) -> float:
        """Return the share of values that differ by at most a twentieth of a standard deviation.

        One step of an 8-bit code over the range of a normal distribution is about that much.
        """
        scale = expected.std(correction=0).clamp(min=1e-6)
        return float(((predictions - expected).abs() <= 0.05 * scale).double().mean())

    def describe(self) -> str:
        """Return the head as text."""
        return f"{int(self)} raw outputs"

    def to_json(self) -> int | dict[str, object]:
        """Return the head as a JSON value, without the user's functions."""
        return {"kind": self.kind, "size": int(self), "metric": self.metric}


#: Name of a kind to its class.
KINDS: Mapping[str, type[Head]] = {
    kind.kind: kind
    for kind in (Head, Levels, Candidates, Binary, MultiLabel, Dense, Tags, Regression, Detection, Custom)
}


def as_head(size: int) -> Head:
    """Return a head as one of its kinds; a plain number is a head of so many classes.

    Example:
        >>> as_head(10).kind, as_head(Tags(9)).kind
        ('classes', 'tags')
    """
    return size if isinstance(size, Head) else Head(size)


def find_custom_head(heads: Mapping[str, int]) -> BoundHead | None:
    """Return the user's functions of a task with a custom head; None for any other task."""
    return next((head.bound for head in heads.values() if isinstance(head, Custom)), None)


def average_losses(losses: Sequence[Tensor]) -> Tensor:
    """Return the mean of the losses of the heads, ``[]``.

    Example:
        >>> average_losses([torch.tensor(1.0), torch.tensor(2.0)]).item()
        1.5
    """
    # Most tasks have one head, whose loss is its own mean: three operations less in each step.
    return losses[0] if len(losses) == 1 and not losses[0].dim() else torch.stack(list(losses)).mean()


def head_from_json(value: int | Mapping[str, object]) -> Head:
    """Return the head that :meth:`Head.to_json` wrote.

    Raises:
        ValueError: The kind is unknown, or its settings do not fit.

    Example:
        >>> head_from_json({"kind": "tags", "size": 9, "metric": "entity_f1"}).describe()
        '9 tags for each token'
    """
    if isinstance(value, int):
        return as_head(value)
    settings = {name: tuple(entry) if isinstance(entry, list) else entry for name, entry in value.items()}
    kind = KINDS.get(str(settings.pop("kind", "")))
    size = settings.pop("size", None)
    if kind is None or not isinstance(size, int):
        raise ValueError(f"no head of this kind: {value}")
    try:
        return kind(size, **settings)  # type: ignore[arg-type]
    except (TypeError, TrialError) as error:
        raise ValueError(f"the head {value} cannot be read ({error})") from error


def _logit(share: float) -> float:
    """Return the difference of two logits at which the second class has a probability: p > t is z > logit(t)."""
    return math.log(share) - math.log1p(-share)


def _focal_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Return the focal loss of independent classes, with gamma 2 and alpha 1/4 as in its paper."""
    entropy = F.binary_cross_entropy_with_logits(logits, present, reduction="none")
    # exp(-entropy) is the probability of what is true.
    return (0.25 * present + 0.75 * (1 - present)) * (1 - (-entropy).exp()).square() * entropy


def _bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the KL divergence of independent yes-or-no distributions from the teacher's, elementwise."""
    shares = teacher.sigmoid()
    ours, theirs = (
        F.binary_cross_entropy_with_logits(logits, shares, reduction="none") for logits in (student, teacher)
    )
    return ours - theirs


def _as_two_classes(logits: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(logits), logits], 1)


def _as_indices(targets: Tensor) -> Tensor:
    """Return class indices; NaN among real numbers is a missing label."""
    if targets.is_floating_point():
        return torch.where(targets.isnan(), IGNORED, targets).long()
    return targets.long()
