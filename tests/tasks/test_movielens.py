"""Layouts of MovieLens: the same ratings from each, and damaged files named with their line."""

from pathlib import Path

import pytest

from autocompress.errors import UsageError
from autocompress.tasks.movielens import read_movielens


def write_files(folder: Path, **files: str) -> Path:
    """Write files whose names have an underscore in the place of the dot."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        if text:
            (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def test_users_and_items_of_100k_have_features(tmp_path: Path) -> None:
    table = read_movielens(
        write_files(
            tmp_path / "ml",
            u_data="1\t7\t5\t100\n2\t7\t3\t90\n",
            u_item='7|A "quoted" title|01-Jan-1995||http://x|0|1|1\n',
            u_user="1|24|M|writer|85711\n2|53|F|other|94043\n",
        )
    )
    occupations = ("occupation other", "occupation writer")
    assert table.names == ("age", "gender", *occupations, "genre 0", "genre 1", "genre 2")
    assert table.features.tolist() == [[24, 0, 0, 1, 0, 1, 1], [53, 1, 1, 0, 0, 1, 1]]
    assert table.times == [100, 90]


def test_users_and_films_of_1m_have_features(tmp_path: Path) -> None:
    table = read_movielens(
        write_files(
            tmp_path / "ml",
            ratings_dat="1::7::5::100\n2::8::3::90\n",
            movies_dat='7::Film: a "title" (1995)::Comedy|Drama\n8::Other (1996)::Action\n',
            users_dat="1::M::25::4::85711\n2::F::56::10::94043\n",
        )
    )
    genres = ("genre Action", "genre Comedy", "genre Drama")
    assert table.names == ("age", "gender", "occupation 10", "occupation 4", *genres)
    assert table.features.tolist() == [[25, 0, 0, 1, 0, 1, 1], [56, 1, 1, 0, 1, 0, 0]]
    assert (table.users, table.items, table.ratings, table.times) == (["1", "2"], ["7", "8"], [5, 3], [100, 90])


def test_the_latest_layout_has_headers_and_genres_only(tmp_path: Path) -> None:
    folder = write_files(
        tmp_path / "ml",
        ratings_csv="userId,movieId,rating,timestamp\n1,7,4.5,100\n1,8,2.0,110\n",
        movies_csv='movieId,title,genres\n7,"A, film (1995)",Drama|War\n8,B,(no genres listed)\n',
    )
    table = read_movielens(folder)
    assert table.names == ("genre Drama", "genre War")
    assert table.features.tolist() == [[1, 1], [0, 0]]
    assert table.ratings == [4.5, 2.0]
    (folder / "movies.csv").unlink()
    assert read_movielens(folder).features.shape == (2, 0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"u_data": "1\t7\t5\n"}, r"u\.data:1: 3 fields; user, item, rating and time"),
        ({"u_data": "1\t7\tx\t1\n"}, r"u\.data:1: 'rating' is 'x'"),
        ({"u_data": "1\t7\t5\t1\n", "u_item": "8|t|d||u|1\n"}, r"contains the item 7, but u\.item has no line"),
        ({"u_data": "1\t7\t5\t1\n", "u_item": "7|t|d||u|1\n8|t|d||u|1|0\n"}, r"u\.item:2: 2 genre flags"),
        ({"u_data": "1\t7\t5\t1\n", "u_item": "7|t\n"}, r"u\.item:1: 2 fields"),
        ({"u_data": "1\t7\t5\t1\n", "u_user": "1|M|writer\n"}, r"u\.user:1: 3 fields"),
        ({"u_data": "1\t7\t5\t1\n", "u_user": "1|old|M|writer|1\n"}, r"u\.user:1: 'age' is 'old'"),
        ({"u_item": "7|t|d||u|1\n"}, r"holds no u\.data, ratings\.dat or ratings\.csv"),
        ({"ratings_dat": "1::7::5\n"}, r"ratings\.dat:1: 3 fields; .*separated by ::"),
        ({"ratings_dat": "1::7::5::1\n", "users_dat": "2::F::1::10::x\n"}, r"the user 1, but users\.dat has no line"),
        ({"ratings_csv": "userId,movieId,rating,timestamp\n1,7,good,100\n"}, r"ratings\.csv:2: 'rating' is 'good'"),
        ({"ratings_csv": "userId,movieId,rating,timestamp\n1,7,4,9\n", "movies_csv": "a,b\n"}, r"movies\.csv:1: 2 f"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_movielens(write_files(tmp_path / "ml", **files))
