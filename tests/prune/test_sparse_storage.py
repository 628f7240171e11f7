import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from autocompress.core.registry import PRUNE
from autocompress.errors import CompressionError
from autocompress.measure import cost, layer_costs
from autocompress.prune import UnstructuredConfig
from autocompress.prune.sparse_storage import (
    LinearSpeed,
    break_even_density,
    csr_speed_threshold,
    measure_linear_speed,
    measure_storage,
    pack_sparse,
    to_csr,
    unpack_sparse,
)
from tests.prune.toys import EXAMPLE, cnn, labelled_context

SHAPES = st.lists(st.integers(1, 7), min_size=2, max_size=4)


def sparse(shape, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)


def saved(**tensors):
    """Bytes of the tensors in a safetensors file, without its header."""
    content = save(tensors)
    return len(content) - 8 - int.from_bytes(content[:8], "little")


class TestPacking:
    @settings(max_examples=50)
    @given(SHAPES, st.floats(0, 1), st.integers(0, 99))
    def test_a_weight_comes_back_as_it_was(self, shape, density, seed):
        weight = sparse(shape, density, seed)
        mask, values = pack_sparse(weight)
        assert torch.equal(unpack_sparse(mask, values, shape), weight)
        assert len(mask) == -(-weight.numel() // 8)
        assert len(values) == int(weight.count_nonzero())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
    def test_any_type_of_value(self, dtype):
        weight = (sparse((5, 9), 0.4) * 10).to(dtype)
        mask, values = pack_sparse(weight)
        assert values.dtype == dtype
        assert torch.equal(unpack_sparse(mask, values, weight.shape), weight)

    @pytest.mark.parametrize("damage", ["short mask", "long mask", "a value less", "a bit behind the end", "shape"])
    def test_parts_that_do_not_belong_together_are_refused(self, damage):
        mask, values = pack_sparse(sparse((3, 5), 0.5))
        shape = (3, 5)
        if damage == "short mask":
            mask = mask[:1]
        elif damage == "long mask":
            mask = torch.cat([mask, mask.new_zeros(1)])
        elif damage == "a value less":
            values = values[:-1]
        elif damage == "a bit behind the end":
            mask, values = mask | torch.tensor([0, 128], dtype=torch.uint8), torch.cat([values, values[:1]])
        else:
            shape = (4, 5)
        with pytest.raises(CompressionError, match="does not match its mask"):
            unpack_sparse(mask, values, shape)


class TestBytes:
    def test_every_form_is_measured_as_a_file_holds_it(self):
        model, _ = PRUNE.get("unstructured").apply(
            cnn(width=8), UnstructuredConfig(pruning_ratio=0.7), labelled_context()
        )
        for row in measure_storage(model):
            weight = model.get_parameter(row.name).detach()
            mask, values = pack_sparse(weight)
            matrix = to_csr(weight)
            assert row.dense == saved(weight=weight)
            assert row.packed == saved(mask=mask, values=values)
            assert row.csr == saved(rows=matrix.crow_indices(), columns=matrix.col_indices(), values=matrix.values())
            assert row.density == int(weight.count_nonzero()) / weight.numel()
            assert row.smallest_form == min(("dense", "packed", "csr"), key=lambda form: getattr(row, form))

    def test_the_packed_column_is_the_cost_objective_s(self):
        model, _ = PRUNE.get("unstructured").apply(
            cnn(width=8), UnstructuredConfig(pruning_ratio=0.8), labelled_context()
        )
        layers = layer_costs(model, EXAMPLE)
        rows = measure_storage(model)
        saving = sum(row.dense - min(row.dense, row.packed) for row in rows)
        assert cost.count_model_bytes(layers, {}) - cost.count_sparse_bytes(layers, {}) == saving > 0

    def test_dense_weights_stay_dense(self):
        assert [row.smallest_form for row in measure_storage(nn.Linear(16, 16))] == ["dense"]

    @pytest.mark.parametrize("form", ["packed", "csr"])
    @pytest.mark.parametrize("shape", [(64, 64), (8, 200), (200, 8)])
    def test_break_even_is_where_the_bytes_cross(self, form, shape):
        edge = break_even_density(form, *shape)
        size = shape[0] * shape[1]
        for count, smaller in ((int(edge * size) - 1, True), (int(edge * size) + 2, False)):
            layer = nn.Linear(shape[1], shape[0])
            flat = torch.zeros(size)
            flat[:count] = 1.0
            layer.weight.data = flat.view(shape)
            (row,) = measure_storage(layer)
            assert (getattr(row, form) < row.dense) is smaller

    def test_a_matrix_of_one_column_never_pays_as_rows(self):
        assert break_even_density("csr", 64, 1) == 0.0


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
