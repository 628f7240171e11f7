import numpy as np
import torch

from autocompress.baselines.series import fit_seasonal_naive, fit_series_mean
from autocompress.core.heads import Regression
from autocompress.core.task import InputSpec, Split
from tests.contracts.test_baselines import Given

TASK = Given((InputSpec((1, 24)),), {"next": Regression(3)})


def make_series(seed: int, level: float = 1.0) -> Split:
    """Series with a season of seven steps; inputs are normalized, targets are not."""
    random = np.random.default_rng(seed)
    shape = random.normal(size=(80, 7))
    values = np.concatenate([shape] * 4, 1)[:, :27] + level * random.normal(size=(80, 1))
    series = torch.from_numpy(values).float()
    return Split(((series[:, None, :24] - 0.5) / 2,), {"next": series[:, 24:]})


def test_the_season_is_found_and_repeated_in_units_of_the_targets() -> None:
    predict = fit_seasonal_naive(TASK, make_series(0))
    assert predict is not None
    other = make_series(1)
    assert torch.allclose(predict(other)["next"], other.targets["next"], atol=1e-4)


def test_the_mean_of_a_series_tells_its_level() -> None:
    predict = fit_series_mean(TASK, make_series(0, level=10.0))
    assert predict is not None
    other = make_series(1, level=10.0)
    errors = (predict(other)["next"] - other.targets["next"]).square().mean()
    assert float(errors) < 0.05 * float(other.targets["next"].var())
