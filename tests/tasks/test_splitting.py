import pytest
import torch

from autocompress.errors import UsageError
from autocompress.tasks.splitting import stratified_splits


def test_shares_are_kept_per_class() -> None:
    labels = torch.tensor([0] * 900 + [1] * 100)
    splits = stratified_splits((torch.arange(1000.0),), {"label": labels}, seed=3)
    assert [len(split) for _, split in splits.items()] == [520, 40, 120, 120, 200]
    for _, split in splits.items():
        assert float(split.targets["label"].float().mean()) == pytest.approx(0.1, abs=0.01)
    rows = torch.cat([split.inputs[0] for _, split in splits.items()])
    assert torch.equal(rows.sort().values, torch.arange(1000.0))


@pytest.mark.parametrize(
    ("labels", "message"),
    [(torch.zeros(50, dtype=torch.long), "single class"), (torch.tensor([0] * 50 + [1] * 2), "class 1 has 2 examples")],
)
def test_targets_that_cannot_be_split_are_refused(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stratified_splits((torch.zeros(len(labels)),), {"label": labels}, seed=0)
