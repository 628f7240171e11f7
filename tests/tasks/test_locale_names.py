from collections import Counter

from babel import Locale

from autocompress.tasks.locale_names import KINDS, LANGUAGES, names

NAMES = names()


def test_thirty_languages_and_about_23_600_names() -> None:
    assert len(set(LANGUAGES)) == len(LANGUAGES) == 30
    assert 23_000 < len(NAMES) < 25_000
    per_language = Counter(name.language for name in NAMES)
    assert set(per_language) == set(LANGUAGES)
    assert min(per_language.values()) > 300
    assert set(Counter(name.kind for name in NAMES)) == set(KINDS)


def test_each_name_occurs_once_whatever_its_capitals() -> None:
    assert len({name.text.casefold() for name in NAMES}) == len(NAMES)
    assert all(name.text == " ".join(name.text.split()) != "" for name in NAMES)


def test_what_several_languages_or_kinds_share_is_left_out() -> None:
    texts = {name.text for name in NAMES}
    english = Locale.parse("en")
    assert english.territories["MT"] == Locale.parse("it").territories["MT"] == "Malta"
    assert "Malta" not in texts
    assert english.languages["ar"] == english.scripts["Arab"] == "Arabic"
    assert "Arabic" not in texts


def test_a_name_is_what_the_locale_says() -> None:
    known = {(name.text, name.language): name.kind for name in NAMES}
    assert known["Deutschland", "de"] == "territory"
    assert known["Schweizer Franken", "de"] == "currency"
    for name in NAMES[::500]:
        locale = Locale.parse(name.language)
        entries = {"territory": locale.territories, "language": locale.languages, "script": locale.scripts}
        assert name.text in set({**entries, "currency": locale.currencies}[name.kind].values())


def test_the_order_is_fixed() -> None:
    keys = [(name.language, name.kind, name.text) for name in NAMES]
    assert keys == sorted(keys)
