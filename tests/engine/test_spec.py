import json
from pathlib import Path

import pytest

from autocompress.engine.spec import (
    MAX_BYTES,
    Spec,
    json_schema,
    list_shipped_spaces,
    load_spec,
    parse_spec,
    parse_yaml,
)
from autocompress.errors import AutocompressError, SpecError, UsageError

SOUND = "task: digits\nstudent: {cnn: {}}\n"

GOOD = """\
task: digits
search:
  trials: 4
student:
  cnn:
    width: [4, 8]
"""


def test_short_forms_equal_the_long_ones() -> None:
    spec = parse_spec(GOOD + "distill: [none, soft_target]\nprune: none\nobjectives: [accuracy, bytes]\n", "x").spec
    assert spec.task == {"digits": {}}
    assert spec.distill.terms == {"none": {}, "soft_target": {}}
    assert spec.prune == {"none": {}}
    assert spec.objectives == {"accuracy": None, "bytes": None}
    assert spec.search.trials == 4
    assert spec.search.mode == "amortized"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "prunee: none", r"x:7: prunee: unknown key; did you mean 'prune'"),
        (GOOD.replace("trials", "trails"), r"x:3: search.trails: unknown key; did you mean 'trials'"),
        (GOOD.replace("4", "0", 1), r"x:3: search.trials: input should be greater than or equal to 1, got 0"),
        (GOOD + "limits: {bytes: {maxi: 3}}", r"x:7: limits.bytes.maxi: unknown key; did you mean 'max'"),
        (
            GOOD + "distill: {none: , transfer: {hed: new}}",
            "x:7: distill.transfer.hed: unknown key; did you mean .head.",
        ),
        (GOOD + "distill: {none: , transfer: {head: new}}", "x:7: distill.transfer.from: field required; add `from:`"),
        (GOOD + "distill: {none: , transfer: {from: a, hed: new}}", r"x:7: distill.transfer.hed: .* mean 'head'"),
        (GOOD + "distill: {none: , transfer: {from: a, head: old}}", r"transfer.head: input should be 'keep' or 'new'"),
        (GOOD + "limits: {bytes: {max: .nan}}", r"x:7: limits.bytes.max: input should be a finite number"),
        (GOOD + "limits: {bytes: {min: 10, max: 5}}", r"x:7: limits.bytes: no value is at least 10 and at most 5"),
        (GOOD + "objectives: {accuracy: [.nan, 1], bytes: }", r"x:7: objectives.accuracy.0: .* finite number"),
        (GOOD + "pick: {confidence: 0.4}", r"x:7: pick.confidence: input should be greater than 0.5"),
        (GOOD + "name: ../evil", "x:7: name: use letters"),
        (GOOD.replace("task: digits\n", ""), "x: task: field required; add `task: digits`"),
        ("task: digits\nstudnt: {cnn: {}}", r"x:2: studnt: unknown key; did you mean 'student'"),
        ("task: digits", r"x: student: field required; add `student: {cnn: {width:"),
        (GOOD + "search: {mode: amortised}", "is given twice"),
        ("- 1", "a search space is a mapping"),
        ("", "a search space is a mapping"),
    ],
)
def test_errors_name_the_line_and_a_correction(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(text, "x")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seach.minutes=1", "^--set seach: unknown key; did you mean 'search'"),
        ("search.minuts=1", "^--set search.minuts: unknown key; did you mean 'minutes'"),
        ("search.minutes=soon", "^--set search.minutes: .* got 'soon'"),
        ("limits.bytes.max=30ms", "^--set limits: '30ms' is in ms, and bytes in B"),
        ("task.digits=3", "^--set task.digits: "),
    ],
)
def test_an_error_in_an_override_names_the_override(override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(GOOD, "x", [override])


@pytest.mark.parametrize(
    ("path", "location"),
    [
        (("student", "cnn", "widht"), "--set student.cnn.widht"),
        (("student", "cnn", "widht", "low"), "--set student.cnn.widht.low"),
        (("student", "cnn"), "x:3: student.cnn with --set student.cnn.widht"),
        (("teacher",), "--set teacher"),
        (("task",), "x:1: task"),
    ],
)
def test_later_errors_name_what_has_set_the_key(path: tuple[str, ...], location: str) -> None:
    text = "task: digits\nstudent:\n  cnn: {width: 8}"
    source = parse_spec(text, "x", ["student.cnn.widht=3", "teacher.seed=1"])
    assert str(source.make_error(path, "wrong")) == f"{location}: wrong"


def test_limits_take_sizes_and_percentages() -> None:
    text = GOOD + "limits: {bytes: {max: 30KB}, accuracy: {min: 97%}, latency_ms: {max: 2 ms}}\npick: {max_drop: 1%}"
    spec = parse_spec(text, "x", ["limits.flops.max=1.5 MFLOPs"]).spec
    assert {name: (limit.min, limit.max) for name, limit in spec.limits.items()} == {
        "bytes": (None, 30_000.0),
        "accuracy": (0.97, None),
        "latency_ms": (None, 2.0),
        "flops": (None, 1_500_000.0),
    }
    assert spec.pick.max_drop == 0.01
    assert parse_spec(spec.to_yaml(), "x").spec == spec


def test_overrides_change_nested_keys_and_are_read_as_yaml() -> None:
    spec = parse_spec(
        GOOD,
        "x",
        [
            "search.mode=sampled",
            "student.cnn.width={low: 4, high: 8}",
            "search.seed=7",
            "prune.structured.pruning_ratio=0.5",
        ],
    ).spec
    assert spec.search.mode == "sampled"
    assert spec.search.seed == 7
    assert spec.student["cnn"]["width"] == {"low": 4, "high": 8}
    assert spec.prune == {"structured": {"pruning_ratio": 0.5}}


@pytest.mark.parametrize("name", ["2024", "3.10", "no", "1e5", "007", "2024-01-01", "null"])
def test_a_name_that_looks_like_another_value_stays_text(name: str) -> None:
    text = "task: digits\nstudent: {cnn: {}}\n"
    assert parse_spec(text, "x", [f"name={name}"]).spec.name == name
    assert parse_spec(f"{text}name: {name}\n", "x").spec.name == name


@pytest.mark.parametrize("override", ["search.mode", "=3", "search.=3", "search.trials.deep=1"])
def test_invalid_overrides_are_errors(override: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        parse_spec(GOOD, "x", [override])


def test_override_of_an_unknown_key_is_an_error() -> None:
    with pytest.raises(SpecError, match="did you mean 'sampler'"):
        parse_spec(GOOD, "x", ["search.sampller=tpe"])


def test_a_resolved_spec_reads_back_equal() -> None:
    spec = parse_spec(GOOD, "x").spec
    assert parse_spec(spec.to_yaml(), "y").spec == spec


def test_immutable_content_excludes_name_budget_and_backend() -> None:
    one = parse_spec(GOOD, "x", ["search.trials=9", "search.minutes=1", "search.workers=1", "name=other"]).spec
    assert one.immutable_content() == parse_spec(GOOD, "y").spec.immutable_content() | {}
    assert parse_spec(GOOD, "x", ["search.seed=9"]).spec.immutable_content() != one.immutable_content()


def test_shipped_space_is_loaded_by_name_and_a_misspelt_name_gets_a_suggestion() -> None:
    assert "digits" in list_shipped_spaces()
    assert load_spec("digits").spec.name == "digits"
    with pytest.raises(SpecError, match="did you mean 'digits'"):
        load_spec("digit")


def test_unreadable_file_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        load_spec(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"task: \xff\xfe")
    with pytest.raises(SpecError, match=r"latin\.yaml cannot be read"):
        load_spec(tmp_path / "latin.yaml")
    (tmp_path / "dir.yaml").mkdir()
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path / "dir.yaml")


def test_paths_of_data_hold_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.csv").touch()
    monkeypatch.chdir(tmp_path)
    text = "task: {text: {path: data/x.csv, test: data/none.csv, text: data}}\nstudent: {text_cnn: {}}\n"
    assert parse_spec(text, "x").spec.task["text"] == {
        "path": str(tmp_path / "data" / "x.csv"),
        "test": "data/none.csv",
        "text": "data",
    }


def test_the_schema_names_every_key() -> None:
    text = json_schema()
    assert all(f'"{name}"' in text for name in Spec.model_fields)


def test_the_schema_has_the_key_required_in_terms_of_distill_only() -> None:
    schema = json.loads(json_schema())
    sections, distill = schema["properties"], schema["$defs"]["DistillSection"]
    assert distill["additionalProperties"]["properties"]["required"]["type"] == "boolean"
    assert {"from", "head", "backbone", "labels"} == set(schema["$defs"]["TransferSection"]["properties"])
    assert "properties" not in sections["prune"]["additionalProperties"]


def test_a_transfer_is_written_as_it_is_read() -> None:
    spec = parse_spec(GOOD + "distill: {none: , transfer: {from: runs/a, head: new}}\n", "x").spec
    assert spec.distill.terms == {"none": {}}
    assert parse_spec(spec.to_yaml(), "y").spec == spec
    # Without a transfer, the stored content is that of earlier versions, so their runs can be resumed.
    assert parse_spec(GOOD, "x").spec.immutable_content()["distill"] == {"none": {}}


def test_required_can_be_set_by_an_override_and_may_not_change_on_resume() -> None:
    text = GOOD + "distill:\n  none:\n  relational:\n"
    required = parse_spec(text, "x", ["distill.relational.required=true"]).spec
    assert required.distill.terms == {"none": {}, "relational": {"required": True}}
    assert required.immutable_content() != parse_spec(text, "x").spec.immutable_content()


def test_spec_errors_are_usage_errors() -> None:
    assert issubclass(SpecError, AutocompressError)
    assert SpecError.exit_code == 2


@pytest.mark.parametrize(
    ("text", "result"), [("4 GiB", 4 << 30), ("800MB", 800_000_000), ("4096", 4096), ("null", None)]
)
def test_memory_limit_is_parsed_with_its_unit(text: str, result: int | None) -> None:
    source = parse_spec(SOUND, "x", [f"search.memory={text}", "search.trial_minutes=2"])
    assert source.spec.search.memory == result
    assert source.spec.immutable_content() == parse_spec(SOUND, "x").spec.immutable_content(), (
        "a run goes on under other limits"
    )


@pytest.mark.parametrize("text", ["much", "-1", "4 QB", "0", "[1]"])
def test_invalid_memory_limit_is_an_error(text: str) -> None:
    with pytest.raises(SpecError, match=r"search\.memory"):
        parse_spec(SOUND, "x", [f"search.memory={text}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("3", 3),
        ("010", 10),
        ("-08", -8),
        ("1_000", 1000),
        ("0x1f", 31),
        ("0o10", 8),
        ("1:30", "1:30"),
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
        ("[" * 5000, "spec:1: more than 50 levels"),
        ("[" + "1," * 20_000 + "]", "spec:1: more than 10000 values"),
        ("a: !!set {b}", "spec:1"),
        ("a: " + "9" * 5000, "spec:1: the number has too many digits"),
        ("a: 0x" + "f" * 5000, "spec:1: the number has too many digits"),
    ],
)
def test_invalid_or_unsafe_text_is_an_error_with_its_line(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_yaml(text, "spec")
