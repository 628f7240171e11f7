import warnings

import numpy as np
import pytest

from autocompress.tasks.mnist1d import generate_mnist1d


@pytest.mark.slow
def test_the_published_seed_gives_the_published_curves() -> None:
    curves, digits = generate_mnist1d()
    assert curves.shape == (5000, 40)
    assert digits[:10].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1]
    assert curves[0, :4] == pytest.approx([-0.33200567, -0.47191037, -0.77869708, -1.00974083], abs=1e-7)
    assert curves.mean() == pytest.approx(0, abs=1e-9)
    assert curves.std() == pytest.approx(1)
    assert np.bincount(digits).tolist() == [500] * 10


def test_the_published_generator_makes_the_same_curves() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports names that scipy has moved
        published = pytest.importorskip("mnist1d.data", exc_type=ImportError)
    state = np.random.get_state()
    try:
        options = published.get_dataset_args()
        options.num_samples, options.seed = 200, 7
        theirs = published.make_dataset(options)
    finally:
        np.random.set_state(state)
    curves, digits = generate_mnist1d(200, seed=7)
    assert np.concatenate([theirs["y"], theirs["y_test"]]).tolist() == digits.tolist()
    assert np.abs(np.concatenate([theirs["x"], theirs["x_test"]]) - curves).max() < 1e-9


def test_a_seed_names_its_curves() -> None:
    one, again, other = generate_mnist1d(100, seed=1), generate_mnist1d(100, seed=1), generate_mnist1d(100, seed=2)
    assert np.array_equal(one[0], again[0])
    assert np.array_equal(one[1], again[1])
    assert not np.array_equal(one[0], other[0])


def test_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].tolist()
    generate_mnist1d(10, seed=3)
    assert np.random.get_state()[1].tolist() == before
