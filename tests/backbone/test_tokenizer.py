"""Ids to text: as transformers does it, whichever way is taken."""

import pytest

from umbel.backbone.tiny import tiny_backbone
from umbel.backbone.tokenizer import Tokenizer, load_tokenizer

TEXTS = ["hello", " a  b ", "don't , stop !", "\u00e9t\u00e9 \u6f22\u5b57 \U0001f642", "<eos>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_backbone(tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize("skip", [True, False])
def test_the_short_way_gives_what_transformers_gives(tokenizer, skip):
    assert tokenizer._fast is not None
    for text in TEXTS:
        ids = [*tokenizer.encode(text, special=True), tokenizer.eos]
        for some in (ids, ids[:1], ids[1:], []):
            long_way = tokenizer.hf.decode(some, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(some, skip_special=skip) == long_way


def test_a_class_with_a_way_of_its_own_keeps_it(tokenizer):
    class Own(type(tokenizer.hf)):
        def _decode(self, token_ids, **told):
            return f"own {len(token_ids)}"

    own = Own(tokenizer_object=tokenizer.hf.backend_tokenizer)
    assert Tokenizer(own).decode([1, 2, 3]) == "own 3"
