"""The loss of embedders on vectors that are given: what is a wrong answer, and what is not."""

import numpy as np
import pytest
import torch

from umbel.training.contrast import Contrast
from umbel.training.data.encode import Example

TEMPERATURE = 0.1


def text(index, letters, mates=()):
    return Example(index, np.frombuffer(letters.encode(), dtype=np.uint8).astype(np.int32), None, mates=mates)


def losses(pairs, left_out):
    """(Contrast's summed loss, the same by hand with these (row, candidate) left out)."""
    width, contrast = 5, None
    contrast = Contrast(pairs, temperature=TEMPERATURE, group=len(pairs), width=width)
    texts = [each for pair in pairs for each in pair.sequences]
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(len(texts), width, generator=generator).double(), dim=1)
    with torch.no_grad():
        contrast.tell(texts, vectors)
    own = {each.index: vector for each, vector in zip(texts, vectors, strict=True)}
    candidates = [pair.mates[0] for pair in pairs] + [mate for pair in pairs for mate in pair.mates[1:]]
    total = 0.0
    for row, pair in enumerate(pairs):
        scores = [
            float(own[pair.index] @ own[each.index]) / TEMPERATURE
            for place, each in enumerate(candidates)
            if (row, place) not in left_out
        ]
        right = float(own[pair.index] @ own[pair.mates[0].index]) / TEMPERATURE
        total += np.log(np.sum(np.exp(scores))) - right
    return contrast.total()[0], total


def test_every_other_positive_and_negative_is_a_wrong_answer():
    pairs = [text(0, "a", (text(1, "A"), text(2, "x"))), text(3, "b", (text(4, "B"),)), text(5, "c", (text(6, "C"),))]
    assert losses(pairs, set()) == pytest.approx([losses(pairs, set())[1]] * 2)


def test_copies_of_a_row_s_own_positive_are_no_wrong_answers():
    pairs = [text(0, "a", (text(1, "A"),)), text(2, "b", (text(3, "A"),)), text(4, "c", (text(5, "C"),))]
    found, by_hand = losses(pairs, {(0, 1), (1, 0)})
    assert found == pytest.approx(by_hand)
    assert abs(found - losses(pairs, set())[1]) > 0.1


def test_the_row_s_own_text_is_no_wrong_answer_either():
    pairs = [text(0, "a", (text(1, "A"),)), text(2, "b", (text(3, "B"), text(4, "a")))]
    found, by_hand = losses(pairs, {(0, 2)})
    assert found == pytest.approx(by_hand)
