"""The cost ``bytes`` of every registered method and setting is what its tensors take in an exported file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from autocompress.core.knobs import Choice, FloatRange, IntRange
from autocompress.core.method import MethodState
from autocompress.core.registry import PRUNE, QUANTIZE
from autocompress.errors import CompressionError
from autocompress.export.candidate import export_candidate
from autocompress.measure import layer_costs, measure
from autocompress.measure.tensor_storage import Packed, pack_tensors, unpack_tensors
from autocompress.models import CNN, CNNConfig
from autocompress.quantize import fold_batch_norm
from autocompress.store.run_store import RunStore
from autocompress.trial.pipeline import build_cost_subject, list_stored_tensors
from tests.contracts.test_methods import OWN_MODEL, SOMETHING, build, configure, context

# Settings that take long and change nothing that is stored.
CHEAP = {"epochs": 1, "recovery_epochs": 0, "iterations": 2}
# Hyperparameters of the training or of the choice among weights; they do not change the form of what is stored.
SKIPPED = {
    "recovery_learning_rate",
    "learning_rate",
    "recovery_epochs",
    "epochs",
    "momentum",
    "percentile",
    "observer",
    "weight_observer",
    "iterations",
    "schedule",
    "step_epochs",
    "solver",
    "sensitivity",
    "criterion",
}


def list_settings(method: Any) -> list[dict[str, Any]]:
    """Return settings of a method in which each hyperparameter in turn takes its values."""
    knobs = method.config.knobs()
    base = {name: value for name, value in {**SOMETHING, **CHEAP}.items() if name in knobs}
    settings = [base]
    for name, declared in knobs.items():
        space = declared.domain
        if name in SKIPPED:
            continue
        if isinstance(space, Choice):
            values = list(space.options)
        elif isinstance(space, IntRange):
            values = [min(space.high, 7)]
        else:
            assert isinstance(space, FloatRange)
            values = [(space.low + space.high) / 2]
        settings += [{**base, name: value} for value in values]
        if name == "group_size":
            settings += [{**base, "granularity": "per_group", "group_size": size} for size in (2, 7, 64)]
    return list({json.dumps(entry, sort_keys=True): entry for entry in settings}.values())


CASES = [
    pytest.param(registry, name, id=f"{kind}.{name}")
    for kind, registry in (("prune", PRUNE), ("quantize", QUANTIZE))
    for name in registry.names()
]


def build_small(depth: int) -> CNN:
    """Return a network with a residual block, whose channels divide by 4 and whose weights are not all of one size."""
    torch.manual_seed(0)
    config = CNNConfig(width=4, depth=depth, stages=2, block="residual")
    return CNN(config, 1, {"digit": 10, "parity": 2}).eval()


@pytest.mark.slow
@pytest.mark.parametrize(("registry", "name"), CASES)
def test_bytes_are_those_of_the_exported_tensors(registry: Any, name: str) -> None:
    method = registry.get(name)
    block = OWN_MODEL.get(name, "residual")
    given = context(block=block)
    checked = 0
    for values in list_settings(method):
        try:
            original = build(block) if name in OWN_MODEL else build_small(2 if name == "depth" else 1)
            model, state = method.apply(original, configure(method, values), given)
        except CompressionError:
            # Some combinations are refused, for example one bit on an asymmetric grid.
            continue
        prune_state = MethodState(history=state.history) if registry is PRUNE else None
        quantize_state = state if registry is QUANTIZE else None
        stored_model = fold_batch_norm(model, given.example) if registry is PRUNE else model
        subject = build_cost_subject(
            stored_model, layer_costs(stored_model, given.example), quantize_state, prune_state
        )
        tensors = list_stored_tensors(stored_model, prune_state, quantize_state)
        stored, packed, aliases = pack_tensors(tensors)
        content = save(stored)
        header = int.from_bytes(content[:8], "little")
        assert measure(subject, ["bytes", "sparse_bytes"]) == dict.fromkeys(
            ("bytes", "sparse_bytes"), len(content) - 8 - header
        ), values
        back = unpack_tensors(
            stored, {key: Packed.model_validate_json(form.model_dump_json()) for key, form in packed.items()}, aliases
        )
        assert back.keys() == tensors.keys()
        assert all(torch.equal(back[key], tensor) for key, tensor in tensors.items()), values
        checked += 1
    assert checked > 1


@pytest.mark.slow
def test_the_bytes_of_a_search_are_those_of_its_exports(small_run: Path) -> None:
    with RunStore.read(small_run) as store:
        table = store.candidate_table()
    table = table[table["complete"] & (table["role"] == "search")]
    kinds = table.groupby([table["prune"] != "none", table["quantize"] != "none"])["id"].first()
    assert len(kinds) == 4
    for identity in kinds:
        folder = export_candidate(small_run, identity, verify=False).folder
        size = sum(tensor.nbytes for tensor in load((folder / "model.safetensors").read_bytes()).values())
        assert size == table.set_index("id").loc[identity, "bytes"], identity
