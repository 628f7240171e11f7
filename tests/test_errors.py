import pytest

from autocompress import errors


def test_every_exception_has_an_exit_code_between_one_and_three() -> None:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(found) >= 12
    for kind in found:
        assert kind.exit_code in (1, 2, 3), kind
        assert kind.__name__ in (errors.__doc__ or ""), f"{kind.__name__} is missing from the tree in the docstring"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("digit", "did you mean 'digits'?"), ("zzz", "known: digits, langid"), ("", "known: digits, langid")],
)
def test_a_hint_names_the_nearest_or_all(name: str, hint: str) -> None:
    assert errors.did_you_mean(name, ["langid", "digits"]) == hint


def test_a_hint_lists_a_part_of_many_names() -> None:
    hint = errors.did_you_mean("zzz", [f"column{number:03d}" for number in range(100)])
    assert hint.startswith("known: column000, column001, ")
    assert hint.endswith(f"column{errors.MOST_NAMES - 1:03d} and {100 - errors.MOST_NAMES} more")
