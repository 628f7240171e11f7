import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.prune import sparse_linear
from autocompress.prune.sparse_linear import (
    LinearSpeed,
    SparseLinear,
    csr_speed_threshold,
    measure_linear_speed,
    to_csr,
    use_sparse_kernels,
)


def sparse(shape, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)


@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3, 3), (1, 1)])
def test_csr_has_a_row_for_each_output_and_short_indices(shape):
    weight = sparse(shape, 0.4)
    matrix = to_csr(weight)
    assert matrix.crow_indices().dtype == matrix.col_indices().dtype == torch.int32
    assert torch.equal(matrix.to_dense(), weight.flatten(1))


def network(density):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    with torch.no_grad():
        model[2].weight.copy_(sparse((40, 40), density))
    return model


@pytest.mark.parametrize("shape", [(4, 24), (2, 5, 24)])
@pytest.mark.parametrize("csr_ms", [0.89, 0.91])
def test_only_a_layer_that_measures_faster_changes_its_kernel(monkeypatch, shape, csr_ms):
    model, example = network(0.05), torch.randn(shape)
    timed = []

    def compare(rows, weight, density, repeats):
        timed.append(tuple(rows.shape))
        return LinearSpeed(density, 1.0, csr_ms)

    monkeypatch.setattr(sparse_linear, "_compare_kernels", compare)
    faster, speeds = use_sparse_kernels(model, (example,))
    # Dense layers are not timed, and the sparse one is timed on as many rows as it has here.
    assert list(speeds) == ["2"]
    assert timed == [(example[..., 0].numel(), 40)]
    assert isinstance(faster[2], SparseLinear) == (csr_ms < 0.9)
    assert type(model[2]) is nn.Linear
    with torch.inference_mode():
        torch.testing.assert_close(faster(example), model(example))


def test_a_dense_model_and_an_empty_layer_stay():
    model = network(1.0)
    assert use_sparse_kernels(model, (torch.randn(2, 24),))[1] == {}
    empty = network(0.0)
    faster, speeds = use_sparse_kernels(empty, (torch.randn(2, 24),))
    assert speeds == {}
    assert type(faster[2]) is nn.Linear


def test_times_are_measured():
    _, speeds = use_sparse_kernels(network(0.05), (torch.randn(2, 24),), repeats=3)
    assert speeds["2"].dense_ms > 0
    assert speeds["2"].csr_ms > 0
    assert speeds["2"].density == pytest.approx(0.05, abs=0.02)


class TestSpeed:
    def test_the_sparse_layer_computes_what_the_dense_one_does(self):
        weight, x = sparse((20, 30), 0.2), torch.randn(5, 30)
        torch.testing.assert_close(F.linear(x, to_csr(weight)), F.linear(x, weight))

    def test_a_row_for_each_density_with_times_above_zero(self):
        rows = measure_linear_speed(16, 24, 4, densities=(0.5, 0.01), repeats=3)
        assert [row.density for row in rows] == [0.5, 0.01]
        assert all(row.dense_ms > 0 and row.csr_ms > 0 for row in rows)

    @pytest.mark.parametrize(
        ("times", "expected"),
        [([4, 2, 0.5], 0.1), ([0.5, 0.5, 0.5], 0.5), ([4, 2, 2], 0.0), ([0.5, 2, 0.5], 0.1), ([4, 1, 0.5], 0.1)],
    )
    def test_the_density_where_it_starts_to_pay(self, times, expected):
        rows = [LinearSpeed(density, 1.0, csr) for density, csr in zip((0.5, 0.2, 0.1), times, strict=True)]
        assert csr_speed_threshold(rows) == expected
