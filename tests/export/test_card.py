import json
from typing import Any

import pytest

from autocompress.export.architecture import Architecture, parse_architecture
from autocompress.export.card import input_names, render_card
from tests.export.test_architecture import GOOD

SIZES = {"model.onnx": 12_345, "model.safetensors": 678}


def architecture(**change: Any) -> Architecture:
    return parse_architecture(json.dumps(GOOD | change).encode())


def code_of(card: str) -> list[str]:
    return [block.split("```")[0] for block in card.split("```python\n")[1:]]


def test_a_card_tells_what_how_and_how_much() -> None:
    card = render_card(
        architecture(labels={"label": ["zero", "one"]}),
        {
            "title": "t12c7",
            "summary": "The recommended one.",
            "scores": {"test": {"accuracy": 0.97654}, "select_val": {"accuracy": 0.96, "f1": 0.95}},
            "costs": {"effective_flops": 1234567.8, "parameters": 4321},
            "limits": ["not for doctors"],
            "reason": "the knee of the front",
        },
        SIZES,
        weights_only=False,
    )
    for part in (
        "# t12c7\n\nThe recommended one.",
        "- Task: digits: label (10 classes)",
        "4-bit weights with 8-bit inputs (1 layers)",
        "## Scores\n\n|  | accuracy | f1 |\n|---|---|---|\n| test | 0.9765 |  |\n| select_val | 0.96 | 0.95 |",
        "| effective_flops | 1,234,568 |\n| parameters | 4,321 |",
        "## Limits\n\n- not for doctors",
        "## Reason\n\nthe knee of the front",
        "- student: cnn, width 8",
        "- with: torch 2.13.0",
        "| model.onnx | 12,345 |",
        "## Classes of label\n\n0: zero, 1: one",
    ):
        assert part in card
    # An artifact of an earlier version has no pipeline.
    assert "raw input" not in card


def test_a_card_tells_how_raw_input_is_served() -> None:
    card = render_card(architecture(), {}, SIZES | {"pipeline.py": 9, "preprocess.json": 3}, weights_only=False)
    assert "## Predict from raw input\n\n```sh\npython pipeline.py INPUT\n```" in card
    assert "| pipeline.py | 9 | predictions for raw input" in card


def test_both_ways_of_loading_take_few_lines() -> None:
    for block in code_of(render_card(architecture(), {}, SIZES, weights_only=False)):
        assert len([line for line in block.splitlines() if line.strip()]) <= 8
        compile(block, "card", "exec")


def test_weights_alone_are_decoded_on_loading() -> None:
    block = code_of(render_card(architecture(), {}, SIZES, weights_only=True))[0]
    assert 'options.add_session_config_entry("session.disable_quant_qdq", "1")' in block
    compile(block, "card", "exec")


def test_hostile_text_is_shown_as_text() -> None:
    evil = "<script>alert(1)</script>\n# owned | x [a](javascript:b) `c` \u202e \x00"
    card = render_card(
        architecture(heads={evil: 3}, labels={evil: [evil]}, task=evil),
        {"title": evil, "summary": evil, evil: evil, "scores": {evil: {evil: evil}}, "list": [evil]},
        SIZES,
        weights_only=False,
    )
    assert "<script>" not in card.replace("\\<", "")
    assert "\u202e" not in card
    assert "\x00" not in card
    assert "\n# owned" not in card
    table = next(line for line in card.splitlines() if line.startswith("| \\<script"))
    assert table.replace("\\|", "").count("|") == 3
    for block in code_of(card):
        compile(block, "card", "exec")


def test_a_long_list_of_classes_is_cut() -> None:
    card = render_card(architecture(labels={"label": [f"c{i}" for i in range(1000)]}), {}, SIZES, weights_only=False)
    assert "99: c99, …" in card
    assert "c100" not in card


@pytest.mark.parametrize("state", [None, {"history": {}, "bits": {}}])
def test_an_unquantized_model_says_so(state: dict[str, Any] | None) -> None:
    card = render_card(architecture(quantize=state), {}, SIZES, weights_only=False)
    assert "- Quantized: no, 32-bit floating point" in card


def test_several_inputs_stand_in_the_code() -> None:
    inputs = [{"shape": [1, 5], "dtype": "int64"}, {"shape": [1, 4], "dtype": "float32"}]
    first, second = code_of(render_card(architecture(inputs=inputs), {}, SIZES, weights_only=False))
    assert all(f'"{name}": np.zeros(' in first for name in input_names(2))
    assert "torch.zeros((1, 5), dtype=torch.int64), torch.zeros((1, 4), dtype=torch.float32)" in second
