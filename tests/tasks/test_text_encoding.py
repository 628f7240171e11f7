from zlib import crc32

import pytest
import torch
from hypothesis import given, settings, strategies as st

from autocompress.errors import UsageError
from autocompress.tasks.text_encoding import (
    KINDS,
    VOCABULARIES,
    Encoding,
    count_truncated,
    fit_encoding,
    has_token,
    select_tokens,
)


def test_bytes_are_those_of_utf8_and_one_more() -> None:
    found = Encoding("bytes", 5, 257)(["aé", ""])
    assert found.dtype == torch.int64
    assert found.tolist() == [[byte + 1 for byte in "aé".encode()] + [0, 0], [0] * 5]


def test_characters_have_their_place_and_strangers_share_the_last_token() -> None:
    encoding = fit_encoding("characters", ["bad", "add"], length=4)
    assert encoding == Encoding("characters", 4, 5, "abd")
    assert encoding(["dab!", "ß"]).tolist() == [[3, 1, 2, 4], [4, 0, 0, 0]]


def test_of_too_many_characters_the_frequent_ones_are_kept() -> None:
    encoding = fit_encoding("characters", ["aaabbc", "bbz"], vocabulary=4)
    assert (encoding.alphabet, encoding.vocabulary) == ("ab", 4)
    assert encoding(["abcz"])[0, :4].tolist() == [1, 2, 3, 3]


def test_words_are_lowercased_and_hashed_the_same_everywhere() -> None:
    encoding = Encoding("words", 4, 1000)
    expected = [crc32(word.encode()) % 999 + 1 for word in ("don't", "œuvre", "l\u2019été")]
    assert encoding(["Don't -- ŒUVRE, L\u2019ÉTÉ!"]).tolist() == [[*expected, 0]]
    # Python's own hash of a text differs from one process to the next; this one is pinned.
    assert encoding(["hello"])[0, 0] == 907060870 % 999 + 1


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_gives_tokens_of_the_vocabulary_and_then_padding_alone(kind: str, texts: list[str]) -> None:
    texts = [text.encode(errors="ignore").decode() for text in texts]
    encoding = fit_encoding(kind, texts)
    tokens = encoding(texts)
    assert tokens.shape == (len(texts), encoding.length)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < encoding.vocabulary <= VOCABULARIES[kind]
    ended = (tokens == 0).cumsum(1) > 0
    assert not tokens[ended].any()


def test_the_length_keeps_95_of_100_texts_whole_within_bounds() -> None:
    texts = ["x" * size for size in range(1, 101)]
    encoding = fit_encoding("bytes", texts)
    assert encoding.length == 95
    assert count_truncated(encoding, texts) == 5
    assert fit_encoding("bytes", ["x"]).length == 8
    assert fit_encoding("bytes", ["x" * 10_000]).length == 512
    assert fit_encoding("words", ["x " * 10_000]).length == 256
    assert fit_encoding("words", ["x " * 10_000], length=700).length == 700


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("byte", {}, r"encoding is 'byte'; did you mean 'bytes'\?"),
        ("bytes", {"vocabulary": 300}, "bytes have 257 tokens"),
        ("words", {"vocabulary": 2}, "vocabulary is 2"),
        ("words", {"vocabulary": True}, "vocabulary is True"),
        ("words", {"length": 0}, "length is 0"),
        ("words", {"length": 2.5}, r"length is 2\.5"),
    ],
)
def test_an_option_out_of_bounds_is_refused(kind: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit_encoding(kind, ["a"], **options)


def test_what_says_nothing() -> None:
    assert [has_token("words", text) for text in ("", " ", "...", "a", "42", "日本")] == [False] * 3 + [True] * 3
    assert [has_token("characters", text) for text in ("", " \t", "...")] == [False, False, True]


class TestSelectTokens:
    TOKENS = torch.arange(1, 41).repeat(200, 1) * (torch.arange(40) < 30)

    def test_a_share_goes_and_the_order_stays(self) -> None:
        found, order = select_tokens(self.TOKENS, seed=3, share=0.2)
        assert torch.equal(found, self.TOKENS.gather(1, order) * (found > 0))
        kept = (found > 0).sum(1)
        assert 0.78 < kept.float().mean() / 30 < 0.83
        for row, count in zip(found.tolist(), kept.tolist(), strict=True):
            assert row[:count] == sorted(set(row[:count]))
            assert not any(row[count:])

    def test_the_first_token_stays_and_the_seed_decides(self) -> None:
        found, _ = select_tokens(self.TOKENS, seed=3, share=0.5)
        assert (found[:, 0] == 1).all()
        assert torch.equal(found, select_tokens(self.TOKENS, seed=3, share=0.5)[0])
        assert not torch.equal(found, select_tokens(self.TOKENS, seed=4, share=0.5)[0])
        assert torch.equal(select_tokens(self.TOKENS, seed=3, share=0.0)[0], self.TOKENS)
