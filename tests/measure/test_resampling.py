import numpy as np
import pytest
import torch

from autocompress.analysis.significance import unpack_correct
from autocompress.measure import Subject
from autocompress.measure.heads import DRAWS, pack_correct, resample_score


def subject(size: int, share: float, seed: int = 0) -> Subject:
    targets = torch.arange(size) % 3
    wrong = torch.rand(size, generator=torch.Generator().manual_seed(seed)) > share
    logits = torch.nn.functional.one_hot((targets + wrong) % 3, 3).float()
    return Subject({"label": logits}, {"label": targets}, {"label": logits})


def test_spread_of_replicates_is_the_standard_error() -> None:
    result = np.array(resample_score(subject(400, 0.9), "accuracy"))
    right_now = resample_score(subject(400, 1.0), "accuracy")
    assert len(result) == DRAWS
    share = result.mean()
    assert result.std() == pytest.approx(np.sqrt(share * (1 - share) / 400), rel=0.1)
    assert set(right_now) == {1.0}


def test_two_models_share_the_draws_of_a_split() -> None:
    one, other = subject(300, 0.9), subject(300, 0.9)
    assert resample_score(one, "accuracy", 50) == resample_score(other, "accuracy", 50)
    worse = np.array(resample_score(subject(300, 0.5, seed=1), "f1_macro", 50))
    assert np.corrcoef(worse, resample_score(subject(300, 0.5, seed=1), "accuracy", 50))[0, 1] > 0.9


def test_correct_predictions_are_packed_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = subject(1001, 0.7)
    bits = unpack_correct(pack_correct(model))
    assert bits is not None
    assert bits.ravel().tolist() == (model.logits["label"].argmax(1) == model.targets["label"]).tolist()
    monkeypatch.setattr("autocompress.measure.heads.MAX_PACKED_EXAMPLES", 1000)
    assert pack_correct(model) == {}
