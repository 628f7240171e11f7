import json

import pytest

from autocompress.core.preprocessing import (
    CandidatesInput,
    IdInput,
    ImageInput,
    Preprocessing,
    RowInput,
    SeriesInput,
    TensorInput,
    TextInput,
    check_preprocessing,
    describe_preprocessing,
    dump_input,
)
from autocompress.errors import UsageError

IMAGE = ImageInput((3, 8, 8), resize=True, mean=(25.5, 51.0, 76.5), std=(255.0,) * 3)
RECORDS: Preprocessing = (
    IMAGE,
    TextInput("characters", 5, 4, "ab"),
    SeriesInput((2, 9), (0.5, 1.5), (1.0, 2.0)),
    RowInput(("age", "height"), (40.0, 1.7), (9.0, 0.1)),
    IdInput("user", ("a", None, "c"), first_row=1, unknown_row=0),
    CandidatesInput("candidates", ("x", "y"), count=7),
    TensorInput("input", (4, 4)),
)


def test_a_record_survives_json_and_its_shape_is_that_of_the_tensor() -> None:
    for record in RECORDS:
        dumped = dump_input(record)
        assert dumped["kind"] == record.kind
        assert json.loads(json.dumps(dumped))["name"] == record.name
    assert [record.shape for record in RECORDS] == [(3, 8, 8), (5,), (2, 9), (2,), (), (7,), (4, 4)]


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        (IMAGE, ["RGB images cropped and resized to 8 x 8 pixels", "(0.1000, 0.2000, 0.3000)", "(1.0000, 1.0000"]),
        (
            ImageInput((1, 8, 8), False, (0.3,), (0.38,), white=16, scale=16),
            ["grey images of 8 x 8", "from 0 to 16", "(0.3000)", "(0.3800)"],
        ),
        (RECORDS[1], ["5 tokens", "the place of each character in 'ab' plus 1, 3 for others"]),
        (TextInput("words", 5, 100), ["CRC-32 of each lowercased word modulo 99, plus 1"]),
        (RECORDS[2], ["mean (0.5, 1.5)", "standard deviation (1, 2)"]),
        (RECORDS[3], ["2 numbers by name"]),
        (RECORDS[4], ["The user is a row number", "unknown ids are row 0"]),
        (RECORDS[5], ["any number of rows", "unknown ids are refused"]),
    ],
)
def test_the_card_says_what_is_done_to_raw_input(record: object, parts: list[str]) -> None:
    sentence = describe_preprocessing((record,))  # type: ignore[arg-type]
    for part in parts:
        assert part in sentence


def test_nothing_is_said_of_tensors() -> None:
    assert describe_preprocessing((TensorInput("input", (3,)),)) == describe_preprocessing(()) == ""


def test_a_specification_must_fit_the_inputs_of_the_model() -> None:
    check_preprocessing("mine", RECORDS, [record.shape for record in RECORDS])
    for shapes in ([], [(3, 8, 8), (5,)], [(1, 8, 8)]):
        with pytest.raises(UsageError, match=r"task 'mine': specify_preprocessing .* shapes \[\(3, 8, 8\)\]"):
            check_preprocessing("mine", (IMAGE,), shapes)
    user = IdInput("user", ("a",))
    with pytest.raises(UsageError, match="two inputs of one name: user, user"):
        check_preprocessing("mine", (user, user), [(), ()])
