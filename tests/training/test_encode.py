"""What is learnt at which token: small examples by hand."""

import pytest

from umbel.core.contract import Contract
from umbel.core.errors import DataError
from umbel.training.data.encode import chat_examples, encode_rows
from umbel.training.data.rows import ChatRow, LabelledRow, PromptRow, TaggedRow, ValuedRow

GENERATE = Contract(output_head="generate", template="Q: {text}")
LABELS = Contract(output_head="classify", labels=("no", "yes"), template="<{text}>", max_length=6)


def said(backbone, example) -> str:
    """The supervised tokens as text."""
    return backbone.tokenizer.decode(example.ids[example.spoken].tolist(), skip_special=False)


def test_a_completion_and_its_end_are_learnt_and_the_prompt_is_not(backbone):
    (example,) = encode_rows([PromptRow(1, "ab", " cd", (" cd",))], GENERATE, backbone).examples
    whole = backbone.tokenizer.encode("Q: ab") + backbone.tokenizer.encode(" cd") + [backbone.tokenizer.eos]
    assert example.ids.tolist() == whole
    assert example.spoken.tolist() == [False] * 5 + [True] * 4
    assert said(backbone, example) == " cd<eos>"
    assert example.count == 4


def test_training_starts_with_the_tokens_that_serving_sends(backbone):
    from umbel.backbone.texts import encode_texts

    contract = GENERATE.model_copy(update={"add_special_tokens": True})
    (example,) = encode_rows([PromptRow(1, "ab", "cd", ("cd",))], contract, backbone).examples
    (served,) = encode_texts(backbone.tokenizer, contract, ["ab"])
    assert example.ids[~example.spoken].tolist() == served.ids


def test_only_the_assistant_is_learnt_in_every_turn(backbone):
    turns = [("system", "S"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2")]
    row = ChatRow(1, tuple({"role": role, "content": content} for role, content in turns))
    # this template has no end-of-turn token, so each answer gets the tokenizer's own; as a server's history has none
    # in the middle, each turn becomes a sequence of its own
    first, last = chat_examples(row, backbone)
    assert backbone.tokenizer.decode(first.ids[~first.spoken].tolist()) == "<|system|>S\n<|user|>u1\n<|assistant|>"
    assert said(backbone, first) == "a1\n<eos>"
    before = "<|system|>S\n<|user|>u1\n<|assistant|>a1\n<|user|>u2\n<|assistant|>"
    assert backbone.tokenizer.decode(last.ids[~last.spoken].tolist()) == before
    assert said(backbone, last) == "a2\n<eos>"


def test_a_later_turn_is_learnt_after_the_very_tokens_that_a_server_sends(backbone):
    turns = [("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2")]
    row = ChatRow(1, tuple({"role": role, "content": content} for role, content in turns))
    found = chat_examples(row, backbone)
    prompt = backbone.tokenizer.chat(row.messages[:3])
    last = found[-1]
    start = len(last.ids) - len(backbone.tokenizer.encode("a2\n")) - 1
    assert last.ids[:start].tolist() == prompt


@pytest.mark.smol
def test_with_the_real_template_a_conversation_is_one_sequence_up_to_its_last_end_of_turn():
    from pathlib import Path

    from umbel.backbone.installed import find
    from umbel.backbone.tokenizer import load_tokenizer
    from umbel.core.settings import Settings

    folder: Path = find(Settings.load(), "smollm2-135m-instruct").folder
    tokenizer = load_tokenizer(folder)

    class Real:
        name = "smollm2"

        class config:
            eos = (2,)

    Real.tokenizer = tokenizer
    turns = [("user", "Hi!"), ("assistant", "Hello.\n"), ("user", "Bye"), ("assistant", "So long")]
    row = ChatRow(1, tuple({"role": role, "content": content} for role, content in turns))
    (example,) = chat_examples(row, Real)
    whole = tokenizer.encode(tokenizer.chat_text(row.messages, reply=False))
    assert example.ids.tolist() == whole[: len(example.ids)]
    assert example.ids[-1] == 2
    assert (
        tokenizer.decode(example.ids[example.spoken].tolist(), skip_special=False)
        == "Hello.\n<|im_end|>So long<|im_end|>"
    )


def test_a_classified_text_is_cut_on_the_side_that_the_contract_names(backbone):
    row = LabelledRow(1, "abcdefgh", ("yes",), False)
    for side, kept in (("right", "<abcde"), ("left", "defgh>")):
        contract = LABELS.model_copy(update={"truncation_side": side})
        found = encode_rows([row], contract, backbone)
        assert backbone.tokenizer.decode(found.examples[0].ids.tolist()) == kept
        assert found.truncated == 1
        assert found.examples[0].target == (1.0,)


def test_targets_of_several_labels_and_of_values(backbone):
    several = Contract(output_head="classify", labels=("a", "b", "c"), multi_label=True)
    rows = [LabelledRow(1, "x", ("c", "a"), True), LabelledRow(2, "y", (), True)]
    assert [e.target for e in encode_rows(rows, several, backbone).examples] == [(1.0, 0.0, 1.0), (0.0, 0.0, 0.0)]
    value = encode_rows([ValuedRow(1, "x", 2.5)], Contract(output_head="regress"), backbone)
    assert value.examples[0].target == (2.5,)


def test_a_label_that_nobody_named_is_told_with_its_line(backbone):
    with pytest.raises(DataError) as caught:
        encode_rows([LabelledRow(9, "x", ("maybe",), False)], LABELS, backbone)
    assert caught.value.code == "unknown_label"
    assert "line 9" in caught.value.message
    assert "maybe" in caught.value.hint


def test_rows_too_long_to_learn_from_are_left_out_and_counted(backbone):
    short = GENERATE.model_copy(update={"max_length": 6})
    rows = [
        PromptRow(1, "ab", "c", ("c",)),
        PromptRow(2, "abcdefgh", "c", ("c",)),
        PromptRow(3, "a", "b" * 600, ("b",)),
    ]
    found = encode_rows(rows, short, backbone)
    assert [example.index for example in found.examples] == [0]
    assert found.left_out == 2


def test_a_tag_is_learnt_at_its_word_s_first_token(backbone):
    contract = Contract(output_head="tag", labels=("O", "N"), template="> {text}", max_length=9)
    (example,) = encode_rows([TaggedRow(1, ("see", "Ann", "run"), ("O", "N", "O"))], contract, backbone).examples
    assert backbone.tokenizer.decode(example.ids.tolist()) == "> see Ann"  # "run" is cut off and has no target
    assert [backbone.tokenizer.token(int(example.ids[place])).strip() for place in example.words] == ["s", "A"]
    assert example.target == (0.0, 1.0)
    assert example.count == 2
