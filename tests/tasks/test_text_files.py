import csv
import gzip
from pathlib import Path

import pytest

from autocompress.errors import UsageError
from autocompress.tasks.text_files import MAX_FIELD_BYTES, Texts, check_class_labels, read_texts


def read(path: Path, labels: tuple[str, ...] = ("label",), kind: str = "words") -> Texts:
    return read_texts(path, "text", labels, kind)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class TestReading:
    def test_rows_become_texts_with_labels_and_lines(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", '\ufefftext,other,label\n"one,\ntwo",x, yes \n\nthree,y,no\n')
        found = read(path)
        assert found.texts == ("one,\ntwo", "three")
        assert found.labels == {"label": ("yes", "no")}
        assert [found.format_location(row) for row in (0, 1)] == [f"{path}:2", f"{path}:5"]
        assert not found.left_out

    def test_tabs_and_compression(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tsv.gz"
        path.write_bytes(gzip.compress(b"label\ttext\nno\ta, b\n"))
        assert read(path).texts == ("a, b",)

    def test_rows_without_a_text_or_a_label_are_counted(self, tmp_path: Path) -> None:
        rows = "good,1,2\n,1,2\n ?! ,1,2\nfine,,2\nfine,1, \nwell,2,1\n"
        path = write(tmp_path / "a.csv", "text,label,more\n" + rows)
        found = read(path, ("label", "more"))
        assert found.texts == ("good", "well")
        assert found.labels == {"label": ("1", "2"), "more": ("2", "1")}
        assert found.left_out == {"text": 2, "label": 2}
        assert read(path, kind="bytes").left_out == {"text": 1, "label": 1}

    def test_whole_numbers_lose_their_point(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label\na,4.0\nb,4\nc,-1.00\nd,4.5\ne,v1.0\nf,1.\n")
        assert read(path).labels == {"label": ("4", "4", "-1", "4.5", "v1.0", "1.")}

    def test_the_limit_of_fields_is_put_back(self, tmp_path: Path) -> None:
        before = csv.field_size_limit()
        path = write(tmp_path / "a.csv", "text,label\n" + "word " * 100_000 + ",x\n")
        assert len(read(path).texts[0]) == 499_999
        with pytest.raises(UsageError):
            read(path, ("no",))
        assert csv.field_size_limit() == before


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("Text,label\na,b\n", r"a\.csv:1: no column 'text'; did you mean 'Text'\? \(set task\.text\.text\)"),
            ("text,labels\na,b\n", r"no column 'label'; did you mean 'labels'\? \(set task\.text\.labels\)"),
            ("text,label,text\na,b,c\n", "has 'text' 2 times"),
            ("text,label\na,b\nc\n", r"a\.csv:3: 1 fields, but the header has 2"),
            ("text,label\na,b\nc\0c,b\n", r"a\.csv:3: the row contains a NUL"),
            ("text,label\na,b\nc,b\0\n", r"a\.csv:3: the row contains a NUL"),
            (
                "text,label\na,b\n" + "ä" * (MAX_FIELD_BYTES // 2 + 1) + ",b\n",
                r"a\.csv:3: a field is longer than 1 MB; shorten it",
            ),
            (
                'text,label\na,b\n"' + "a\n" * MAX_FIELD_BYTES,
                r"a\.csv:3: a field is longer than 1 MB; is a quotation mark",
            ),
            ("text,label\n", "contains no row with a text in 'text' and a label in 'label'"),
            ("text,label\n,b\na,\n", "contains no row"),
            ("", "no column 'text'; known: none"),
            (b"text,label\n\xff\xfe,b\n", r"a\.csv cannot be read .* UTF-8"),
        ],
    )
    def test_a_file_that_cannot_be_used(self, tmp_path: Path, content: str | bytes, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            read(write(tmp_path / "a.csv", content))

    def test_a_missing_or_foreign_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="there is no file"):
            read(tmp_path / "none.csv")
        with pytest.raises(UsageError, match=r"neither a \.csv nor a \.tsv"):
            read(write(tmp_path / "a.parquet", "x"))

    def test_compressed_content_that_does_not_fit_into_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("autocompress.tasks.text_files.free_memory", lambda: 100_000)
        for content in (b"text,label\n" + b"a,b\n" * 100_000, b"text,label\n" + b"a" * 400_000):
            with pytest.raises(UsageError, match="larger than 50,000 bytes, half of the free memory"):
                read(write(tmp_path / "a.csv.gz", gzip.compress(content)))

    def test_damaged_compression(self, tmp_path: Path) -> None:
        whole = gzip.compress(b"text,label\n" + b"a,b\n" * 1000)
        for content in (whole[:-20], b"text,label\na,b\n"):
            with pytest.raises(UsageError, match="cannot be read"):
                read(write(tmp_path / "a.csv.gz", content))


class TestRealNumbers:
    def test_measurements_are_refused_by_name(self) -> None:
        with pytest.raises(UsageError, match=r"a\.csv: column 'price' contains 11 distinct real numbers.*ranges"):
            check_class_labels(Path("a.csv"), "price", [f"{number}.7" for number in range(11)] * 3)

    @pytest.mark.parametrize(
        "labels",
        [
            [str(number) for number in range(40)],
            [f"{number / 2}" for number in range(10)],
            [*(f"{number}.7" for number in range(40)), "none"],
        ],
    )
    def test_classes_pass(self, labels: list[str]) -> None:
        check_class_labels(Path("a.csv"), "label", labels)
