import pytest

from autocompress.engine.yaml import MAX_BYTES, parse_yaml
from autocompress.errors import SpecError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("3", 3),
        ("3.0", 3.0),
        ("1.2.3", "1.2.3"),
        ("2020-01-01", "2020-01-01"),
        ("true", True),
        ("~", None),
        ("e5", "e5"),
    ],
)
def test_scalars_have_the_expected_types(text: str, value: object) -> None:
    result = parse_yaml(f"a: {text}", "x")[0]["a"]
    assert result == value
    assert type(result) is type(value)


def test_keys_and_items_have_lines() -> None:
    _, lines = parse_yaml("a: 1\nb:\n  c:\n    - x\n    - y\n", "x")
    assert lines == {("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "c", 0): 4, ("b", "c", 1): 5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x", "spec:2: aliases"),
        ("a: 1\na: 2", "spec:2: 'a' is given twice"),
        ("a: [1", "spec:1"),
        ("a: !!python/object/apply:os.system ['true']", "spec:1"),
        ("? [1, 2]\n: 3", "spec:1: a key must be plain text"),
        ("a: \x00", "not YAML"),
        ("a: 1\n---\nb: 2", "spec:2"),
        ("a: " + "x" * MAX_BYTES, "larger than"),
        ("[" * 5000, "spec"),
        ("a: !!set {b}", "spec:1"),
    ],
)
def test_invalid_or_unsafe_text_is_an_error_with_its_line(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_yaml(text, "spec")
