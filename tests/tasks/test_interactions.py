from pathlib import Path

import numpy as np
import pytest

from autocompress.errors import UsageError
from autocompress.tasks.interactions import Columns, read_interactions


def read(path: Path, needs_value: bool = True, **columns: str):
    return read_interactions(path, Columns(**columns), "ratings", needs_value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


class TestCSV:
    def test_columns_are_found_by_name_and_the_rest_are_features(self, tmp_path: Path) -> None:
        text = "age,when,who,what,stars\n30,2024-05-01T10:00:00,ann,x,4\n20,2024-05-01,bob,y,2.5\n"
        found = read(write(tmp_path / "a.csv", text), user="who", item="what", rating="stars", time="when")
        assert found.users.tolist() == ["ann", "bob"]
        assert found.values.tolist() == [4.0, 2.5]
        assert found.times[0] - found.times[1] == 10 * 3600
        assert (found.names, found.features.tolist()) == (("age",), [[30.0], [20.0]])
        assert not found.clicks

    def test_names_of_public_data_sets_are_understood(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "userId,movieId,rating,timestamp\n1,7,4.5,100\n")
        found = read(path)
        assert (found.users.tolist(), found.items.tolist(), found.times.tolist()) == (["1"], ["7"], [100.0])
        assert found.names == ()
        # A name that was set is the one that counts.
        with pytest.raises(UsageError, match="no column 'viewer'"):
            read(path, user="viewer")

    def test_columns_can_be_ignored_and_labels_left_out(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.tsv", "user\titem\tname\nu\ti\tAnn\n")
        found = read(path, needs_value=False, ignore="name")
        assert found.values is None
        assert found.times is None
        assert found.features.shape == (1, 0)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("usr,item,rating\na,b,1\n", r"a\.csv:1: no column 'user' \(task\.ratings\.user\): did you mean 'usr'"),
            ("user,itm,rating\na,b,1\n", r"a\.csv:1: no column 'item'.*did you mean 'itm'"),
            ("user,item,ratings\na,b,1\n", r"no column 'rating' \(task\.ratings\.rating\): did you mean 'ratings'"),
            ("user,item,rating,click\na,b,1,1\n", "there are ratings 'rating' and clicks 'click'"),
            ("user,item,rating\na,b,1\na,b\n", r"a\.csv:3: 2 fields, but the header has 3"),
            ("user,item,rating\n,b,1\n", r"a\.csv:2: 'user' is missing"),
            ("user,item,rating\na, ,1\n", r"a\.csv:2: 'item' is missing"),
            ("user,item,rating\na,b,\n", r"a\.csv:2: 'rating' is ''"),
            ("user,item,rating\na,b,nan\n", r"a\.csv:2: 'rating' is nan"),
            ("user,item,rating\na,b,1\n\na,b,good\n", r"a\.csv:4: 'rating' is 'good'; a number is needed"),
            ("user,item,click\na,b,1\na,b,0.5\n", r"a\.csv:3: 'click' is 0\.5, and a click is 0 or 1; for ratings set"),
            ("user,item,rating,age\na,b,1,old\n", r"a\.csv:2: 'age' is 'old'.*ignore the column"),
            ("user,item,rating,age\na,b,1,inf\n", r"a\.csv:2: 'age' is inf"),
            ("user,item,rating,time\na,b,1,soon\n", r"a\.csv:2: 'time' is 'soon'"),
            ("user,item,rating\n", "contains no interactions"),
            ("", "no column"),
        ],
    )
    def test_what_cannot_be_used_is_named_with_its_line(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            read(write(tmp_path / "a.csv", text))

    def test_a_column_to_ignore_must_be_there(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "user,item,rating,name\na,b,1,Ann\n")
        with pytest.raises(UsageError, match="no column 'nam' to ignore: did you mean 'name'"):
            read(path, ignore="nam")

    def test_a_file_that_is_none_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"neither a \.csv or \.tsv file nor a folder"):
            read(tmp_path / "absent.csv")
        (tmp_path / "b.csv").write_bytes(b"user,item,rating\n\xff\xfe,b,1\n")
        with pytest.raises(UsageError, match=r"b\.csv cannot be read"):
            read(tmp_path / "b.csv")


def test_the_latest_of_a_pair_counts_and_rows_are_in_the_order_of_time(tmp_path: Path) -> None:
    text = "user,item,rating,time\na,x,1,5\nb,x,2,3\na,x,3,4\na,y,4,1\nb,x,5,3\n"
    found = read(write(tmp_path / "a.csv", text)).latest_rows()
    assert found.values.tolist() == [4.0, 5.0, 1.0]
    assert np.array_equal(found.times, [1, 3, 5])
