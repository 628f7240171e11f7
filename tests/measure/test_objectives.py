import pytest
import torch

from autocompress.core.registry import OBJECTIVES
from autocompress.errors import UsageError
from autocompress.measure.objectives import Subject, objective


@pytest.fixture
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OBJECTIVES, "_objects", dict(OBJECTIVES._objects))


@pytest.mark.usefixtures("_registry")
def test_the_decorator_registers_a_function_with_the_first_line_of_its_docstring() -> None:
    @objective("test_rows", "minimize", "cost", unit="rows")
    def count_rows(subject: Subject) -> float:
        """Number of rows.

        More text.
        """
        return float(len(subject.logits["a"]))

    assert (count_rows.name, count_rows.direction, count_rows.kind) == ("test_rows", "minimize", "cost")
    assert (count_rows.unit, count_rows.doc) == ("rows", "Number of rows.")
    assert OBJECTIVES.get("test_rows") is count_rows
    assert count_rows.measure(Subject(logits={"a": torch.zeros(3, 2)})) == 3.0
    with pytest.raises(UsageError, match="registered twice"):
        objective("test_rows", "minimize", "cost")(count_rows.measure)
