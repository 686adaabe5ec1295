"""Text comes in whole characters, and never with a part of a stop string."""

import random

import pytest

from umbel.engine.text import Detokenizer, StopScanner


def deltas(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語 and 🎈🎉", "🧑‍🚀", ""])
def test_deltas_are_whole_characters_and_join_to_the_text(fp32, text):
    found = deltas(fp32.tokenizer, fp32.tokenizer.encode(text))
    assert "".join(found) == text
    assert not any("�" in delta for delta in found)


def test_any_bytes_join_to_what_decoding_at_once_gives(fp32):
    rng = random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(260) for _ in range(rng.randint(1, 30))]
        assert "".join(deltas(fp32.tokenizer, ids)) == fp32.tokenizer.decode(ids)


def test_special_tokens_have_no_text(fp32):
    ids = [*fp32.tokenizer.encode("ab"), 256, *fp32.tokenizer.encode("cd"), 257]
    assert "".join(deltas(fp32.tokenizer, ids)) == "abcd"


def scan(stops, pieces):
    scanner = StopScanner(stops)
    given = []
    for piece in pieces:
        given.append(scanner.push(piece))
        if scanner.stopped:
            return given, True
    return [*given, scanner.flush()], False


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (("END",), "so it ENDs", "so it "),
        (("END",), "so it EN", "so it EN"),
        (("aab",), "aaaab", "aa"),
        (("\n\n", "###"), "x\n#y###z\n\n", "x\n#y"),
        (("abc", "b"), "xabc", "xa"),
        ((), "anything", "anything"),
        (("",), "anything", "anything"),
        (("é",), "caféx", "caf"),
    ],
)
def test_text_ends_before_the_first_stop_however_it_arrives(stops, text, expected):
    rng = random.Random(1)
    for _ in range(30):
        cuts = sorted(rng.sample(range(len(text) + 1), rng.randint(0, 4)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        given, stopped = scan(stops, pieces)
        assert "".join(given) == expected
        assert stopped == (expected != text)


def test_what_may_become_a_stop_is_held_back_until_it_is_sure():
    scanner = StopScanner(("STOP",))
    assert [scanner.push(piece) for piece in ("a S", "T", "O", "x")] == ["a ", "", "", "STOx"]
