import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from babel import Locale

from autocompress.core.duplicates import remove_duplicates
from autocompress.errors import UsageError
from autocompress.models.sharing import check_head_names
from autocompress.tasks.base import FRACTIONS
from autocompress.tasks.text import KINDS, LANGUAGES, LangId, LangIdKind, Text, locale_names

SHARED = Path(os.environ.get("AUTOCOMPRESS_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
NAMES = locale_names()
REVIEWS = SHARED / "clothing_reviews.csv.gz"


def write(path: Path, rows: list[str], header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def reviews(count: int = 60) -> list[str]:
    return [f"{('good', 'bad')[number % 2]} number{number},{('pos', 'neg')[number % 2]}" for number in range(count)]


class TestLangId:
    def test_each_name_is_in_one_split_and_keeps_its_language(self) -> None:
        task = LangId()
        splits = task.splits(0)
        known = {name.text: name.language for name in locale_names()}
        codes = dict(zip(map(tuple, task.encode(list(known)).tolist()), known.values(), strict=False))
        assert sum(len(split) for _, split in splits.items()) == len(known)
        assert len(splits.test) == round(FRACTIONS["test"] * len(known))
        assert len(splits.train) > len(known) / 2
        for _, split in splits.items():
            for tokens, target in zip(split.inputs[0][:50].tolist(), split.targets["language"][:50], strict=True):
                assert LANGUAGES[int(target)] == codes[tuple(tokens)]

    def test_both_tasks_hold_the_same_names(self) -> None:
        one, two = LangId().splits(3), LangIdKind().splits(3)
        assert torch.equal(one.test.inputs[0], two.test.inputs[0])
        assert torch.equal(one.test.targets["language"], two.test.targets["language"])
        assert LangIdKind().heads == {"language": 30, "kind": 4}
        assert LangIdKind().labels["kind"] == KINDS
        assert set(one.test.targets) == {"language"}

    def test_letters_alone_tell_the_language_often(self) -> None:
        """A linear model of the letters is far above chance, 3%, so that there is something to learn."""
        splits = LangId(views=1).splits(0)
        vocabulary = LangId().inputs[0].vocabulary
        parts = [split.take(slice(None, None, 4)) for split in (splits.train, splits.test)]
        bags = [torch.zeros(len(part), vocabulary).scatter_(1, part.inputs[0], 1.0) for part in parts]
        model = torch.nn.Linear(vocabulary, 30)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(bags[0]), parts[0].targets["language"]).backward()
            optimizer.step()
        accuracy = (model(bags[1]).argmax(1) == parts[1].targets["language"]).float().mean()
        assert accuracy > 0.35

    def test_views_lose_a_tenth_of_the_characters_and_the_first_view_none(self) -> None:
        task = LangId()
        train = task.splits(0).train
        assert task.view(train, 0) is train
        before, after = ((split.inputs[0] > 0).sum().item() for split in (train, task.view(train, 1)))
        assert 0.89 < after / before < 0.92

    def test_the_example_is_a_text_without_padding(self) -> None:
        (example,) = LangId().example()
        assert (example > 0).all()
        assert int(example.max()) < LangId().inputs[0].vocabulary

    @pytest.mark.parametrize("views", [0, True, 1.5])
    def test_views_out_of_bounds(self, views: int) -> None:
        with pytest.raises(UsageError, match=r"task\.langid\.views"):
            LangId(views=views)


class TestText:
    def test_classes_stand_in_the_order_of_the_alphabet_or_of_their_numbers(self, tmp_path: Path) -> None:
        task = Text(write(tmp_path / "a.csv", reviews()))
        assert task.labels == {"label": ["neg", "pos"]}
        rows = [f"text {number},{number % 3 * 5 + 5}" for number in range(30)]
        assert Text(write(tmp_path / "b.csv", rows)).labels == {"label": ["5", "10", "15"]}

    def test_a_text_keeps_its_label(self, tmp_path: Path) -> None:
        task = Text(write(tmp_path / "a.csv", reviews()), views=1)
        good = int(task.encode(["good"])[0, 0])
        for _, split in task.splits(1).items():
            assert torch.equal(split.inputs[0][:, 0] == good, split.targets["label"] == 1)

    def test_several_columns_are_several_heads(self, tmp_path: Path) -> None:
        rows = [f"text {number},{number % 2},{'abc'[number % 3]}" for number in range(60)]
        path = write(tmp_path / "a.csv", rows, "text,Rated IND,type")
        task = Text(path, labels=("Rated IND", "type"))
        assert task.heads == {"Rated_IND": 2, "type_label": 3}
        check_head_names(task.heads)
        assert task.labels == {"Rated_IND": ["0", "1"], "type_label": ["a", "b", "c"]}
        assert Text(path, labels="Rated IND, type").labels == task.labels
        assert set(task.splits(0).test.targets) == set(task.heads)

    def test_a_second_file_is_the_test_split(self, tmp_path: Path) -> None:
        train, test = write(tmp_path / "a.csv", reviews()), write(tmp_path / "b.csv", ["nice,pos", "sad,neg"])
        splits = Text(train, test=test).splits(0)
        assert splits.test.targets["label"].tolist() == [1, 0]
        assert sum(len(split) for _, split in splits.items()) == 62

    def test_notices_count_what_is_left_out_cut_and_unequal(self, tmp_path: Path) -> None:
        rows = [f"word{number},a" for number in range(150)] + [f"other{number},b" for number in range(10)]
        rows += [",a", "lost,", "word0,a", "word1,b", "one two three four five six,a"]
        task = Text(write(tmp_path / "a.csv", rows))
        assert list(task.notices) == [
            "a.csv: 1 rows without a text are left out",
            "a.csv: 1 rows without a label are left out",
            "a.csv: 1 rows that repeat an earlier one are left out",
            "1% of the texts are longer than 4 words and lose their end",
            "label: class 'a' has 151 examples and 'b' has 11; compare f1_macro with accuracy",
        ]
        assert not Text(write(tmp_path / "b.csv", reviews())).notices

    def test_texts_that_both_files_hold_leave_the_test_split(self, tmp_path: Path) -> None:
        train = write(tmp_path / "a.csv", reviews())
        test = write(tmp_path / "b.csv", ["good number0,pos", "sad,neg", " Bad  NUMBER1,neg"])
        distinct = remove_duplicates(Text(train, test=test, encoding="characters").splits(0))
        assert distinct.removed["test"] == 2
        # The test file itself is never that of training.
        with pytest.raises(UsageError, match="all 60 examples of test have the same inputs"):
            remove_duplicates(Text(train, test=train).splits(0))

    def test_the_encoding_is_fitted_to_the_training_file_alone(self, tmp_path: Path) -> None:
        train = write(tmp_path / "a.csv", reviews())
        test = write(tmp_path / "b.csv", ["a very long text that is far longer than others é,pos", "sad,neg"])
        alone, both = (Text(train, test=second, encoding="characters") for second in ("", test))
        assert alone.encoding == both.encoding
        assert both.inputs[0].shape == (len("good number58"),)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"text": "txt"}, r"did you mean 'text'\?"),
            ({"labels": "labl"}, r"no column 'labl'; did you mean 'label'\?"),
            ({"labels": []}, r"task\.text\.labels is \[\]"),
            ({"labels": ["label", "label"]}, "'label' twice"),
            ({"labels": "text"}, "'text' twice or as the text"),
            ({"encoding": "word"}, r"did you mean 'words'\?"),
            ({"views": 0}, r"task\.text\.views"),
            ({"drop": 0.9}, r"task\.text\.drop is 0\.9"),
        ],
    )
    def test_an_option_out_of_bounds(self, tmp_path: Path, options: dict[str, object], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Text(Text.write_sample(tmp_path), **options)  # type: ignore[arg-type]

    def test_no_path(self) -> None:
        with pytest.raises(UsageError, match=r"task\.text\.path is not set"):
            Text()

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([f"word{n},same" for n in range(30)], r"a\.csv: column 'label' has a single class, 'same'"),
            (
                [*reviews(), "x y,odd", "x z,odd"],
                r"class 'odd' of column 'label' occurs in 2 of 62 distinct texts; 5",
            ),
            (
                [*reviews(), *["x,odd"] * 9],
                r"'odd' of column 'label' occurs in 1 of 61 distinct texts \(8 more",
            ),
            ([f"word{n},{n}.7" for n in range(30)], r"column 'label' contains 30 distinct real numbers"),
        ],
    )
    def test_a_column_of_labels_that_cannot_be_learned(self, tmp_path: Path, rows: list[str], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Text(write(tmp_path / "a.csv", rows))

    def test_a_class_that_only_the_test_file_has(self, tmp_path: Path) -> None:
        train, test = write(tmp_path / "a.csv", reviews()), write(tmp_path / "b.csv", ["nice,pos", "hm,so"])
        with pytest.raises(UsageError, match=r"b\.csv:3: the class 'so' of column 'label' does not occur"):
            Text(train, test=test)

    def test_columns_that_would_be_the_same_head(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", [f"text {n},{n % 2},{n % 2}" for n in range(30)], "text,a b,a-b")
        with pytest.raises(UsageError, match="'a b' and 'a-b' both give the head 'a_b'"):
            Text(path, labels=["a b", "a-b"])

    @pytest.mark.parametrize(("column", "split"), [("mood_test", "test"), ("mood search", "search")])
    def test_a_head_whose_scores_would_be_those_of_another_on_a_split(
        self, tmp_path: Path, column: str, split: str
    ) -> None:
        path = write(tmp_path / "a.csv", [f"text {n},{n % 2},{n % 2}" for n in range(30)], f"text,mood,{column}")
        with pytest.raises(UsageError, match=rf"'{column}'.*'mood' on the split '{split}'; rename the column"):
            Text(path, labels=["mood", column])
        # Alone it has no name to share.
        assert len(Text(path, labels=column).heads) == 1


@pytest.mark.slow
@pytest.mark.skipif(not REVIEWS.exists(), reason="the shared data is absent")
def test_real_reviews_become_a_task_of_two_heads() -> None:
    task = Text(REVIEWS, text="Review Text", labels=["Recommended IND", "Department Name"], length=40)
    assert task.heads == {"Recommended_IND": 2, "Department_Name": 6}
    notices = "; ".join(task.notices)
    assert "845 rows without a text" in notices
    assert "Department_Name: class 'Tops' has" in notices
    splits = task.splits(0)
    assert sum(len(split) for _, split in splits.items()) > 22_000
    assert abs(float(splits.test.targets["Recommended_IND"].float().mean()) - 0.82) < 0.01


class TestLocaleNames:
    def test_thirty_languages_and_about_23_600_names(self) -> None:
        assert len(set(LANGUAGES)) == len(LANGUAGES) == 30
        assert 23_000 < len(NAMES) < 25_000
        per_language = Counter(name.language for name in NAMES)
        assert set(per_language) == set(LANGUAGES)
        assert min(per_language.values()) > 300
        assert set(Counter(name.kind for name in NAMES)) == set(KINDS)

    def test_each_name_occurs_once_whatever_its_capitals(self) -> None:
        assert len({name.text.casefold() for name in NAMES}) == len(NAMES)
        assert all(name.text == " ".join(name.text.split()) != "" for name in NAMES)

    def test_what_several_languages_or_kinds_share_is_left_out(self) -> None:
        texts = {name.text for name in NAMES}
        english = Locale.parse("en")
        assert english.territories["MT"] == Locale.parse("it").territories["MT"] == "Malta"
        assert "Malta" not in texts
        assert english.languages["ar"] == english.scripts["Arab"] == "Arabic"
        assert "Arabic" not in texts

    def test_a_name_is_what_the_locale_says(self) -> None:
        known = {(name.text, name.language): name.kind for name in NAMES}
        assert known["Deutschland", "de"] == "territory"
        assert known["Schweizer Franken", "de"] == "currency"
        for name in NAMES[::500]:
            locale = Locale.parse(name.language)
            entries = {"territory": locale.territories, "language": locale.languages, "script": locale.scripts}
            assert name.text in set({**entries, "currency": locale.currencies}[name.kind].values())

    def test_the_order_is_fixed(self) -> None:
        keys = [(name.language, name.kind, name.text) for name in NAMES]
        assert keys == sorted(keys)
