import base64
import math
import struct

import pytest
import torch

from umbel.adapters.head import pool


def ask(client, route, model, input, **body):
    return client.post(f"/v1/{route}", json={"model": model, "input": input, **body})


def by_hand(home, ref, text):
    """The head's logits from one full forward, as the contract says the text is read."""
    contract = home.registry.versions.get(f"{ref}@champion").contract
    ids = home.backbone.tokenizer.encode(contract.fill(text))
    ids = ids[: contract.max_length]
    adapter, output = home.forward(ref, ids)
    if adapter.head.config.pooling == "tokens":
        return adapter.head.logits(output.hidden[0])
    lengths = torch.tensor([len(ids)])
    return adapter.head.logits(pool(output.hidden, lengths, torch.zeros_like(lengths), adapter.head.config.pooling))[0]


def test_classify_gives_the_heads_own_probabilities(client, home):
    answer = ask(client, "classify", "mood", "what a day")
    (row,) = answer.json()["data"]
    expected = torch.softmax(by_hand(home, "mood", "what a day"), dim=-1)
    assert row["probs"] == pytest.approx(expected.tolist(), abs=1e-4)
    assert row["labels"] == ["bad", "good", "so-so"]
    assert row["num_classes"] == 3
    assert row["label"] == row["labels"][int(expected.argmax())]
    assert answer.json()["model"] == answer.headers["x-umbel-adapter"] == "mood:1"


def test_a_list_of_texts_is_answered_in_order(client):
    texts = ["one", "two two", "three"]
    rows = ask(client, "classify", "mood", texts).json()
    alone = [ask(client, "classify", "mood", text).json() for text in texts]
    assert [row["index"] for row in rows["data"]] == [0, 1, 2]
    for row, one in zip(rows["data"], alone, strict=True):
        assert row["probs"] == pytest.approx(one["data"][0]["probs"], abs=1e-4)
    assert rows["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)


def test_a_long_text_is_cut_and_says_so(client, home):
    text = "x" * 23 + "y" * 30  # max_length is 24 bytes here
    cut = ask(client, "classify", "mood", text).json()
    kept = ask(client, "classify", "mood", text[:24]).json()
    assert cut["data"][0]["truncated"]
    assert not kept["data"][0]["truncated"]
    assert cut["data"][0]["probs"] == pytest.approx(kept["data"][0]["probs"], abs=1e-4)
    assert cut["usage"]["prompt_tokens"] == 24


def test_a_multi_label_adapter_names_every_label_over_its_threshold(client, home):
    (row,) = ask(client, "classify", "topics", "hello").json()["data"]
    expected = torch.sigmoid(by_hand(home, "topics", "hello")).tolist()
    assert row["probs"] == pytest.approx(expected, abs=1e-4)
    assert row["label"] == [name for name, prob in zip(("a", "b"), expected, strict=True) if prob >= 0.5]


def test_an_adapter_abstains_below_its_bound(client, home):
    contract = home.registry.versions.get("mood:1").contract
    home.publish("shy", contract.model_copy(update={"abstain_below": 1.0}), seed=4)
    (row,) = ask(client, "classify", "shy", "what a day").json()["data"]
    assert row["label"] is None
    assert max(row["probs"]) < 1.0


def test_several_models_answer_keyed_by_what_was_asked(client):
    answer = ask(client, "classify", ["mood", "topics@champion"], ["one", "two"])
    results = answer.json()["results"]
    assert list(results) == ["mood", "topics@champion"]
    assert "data" not in answer.json()
    assert results["mood"] == ask(client, "classify", "mood", ["one", "two"]).json()["data"]
    assert answer.headers["x-umbel-adapter"] == "mood:1, topics:1"


def test_one_wrong_model_of_several_is_told_before_any_is_asked(client, serving):
    before = serving.thread.stats().finished
    answer = ask(client, "classify", ["mood", "nope"], "x")
    assert answer.status_code == 404
    assert "nope" in answer.json()["error"]["message"]
    assert serving.thread.stats().finished == before


def test_one_model_twice_is_refused(client):
    assert ask(client, "classify", ["mood", "mood"], "x").json()["error"]["param"] == "model"


def test_score_gives_the_regressions_number(client, home):
    (row,) = ask(client, "score", "stars", "hello you").json()["data"]
    assert row["score"] == pytest.approx(float(by_hand(home, "stars", "hello you")[0]), abs=1e-3)


def test_tag_gives_each_words_first_token_its_label(client, home):
    text = "Anna, go home"
    (row,) = ask(client, "tag", "names", text).json()["data"]
    probs = torch.softmax(by_hand(home, "names", text), dim=-1)
    words = [(0, "Anna"), (4, ","), (6, "go"), (9, "home")]
    assert [(tag["start"], tag["word"]) for tag in row["tags"]] == words
    for tag, (start, word) in zip(row["tags"], words, strict=True):
        assert text[tag["start"] : tag["end"]] == word
        assert tag["tag"] == ("O", "NAME")[int(probs[start].argmax())]
        assert tag["prob"] == pytest.approx(float(probs[start].max()), abs=1e-4)


def test_words_may_come_split_already(client):
    (row,) = ask(client, "tag", "names", [["Anna", "go-home", "now!"]]).json()["data"]
    assert [(tag["word"], tag["start"], tag["end"]) for tag in row["tags"]] == [
        ("Anna", 0, 4),
        ("go-home", 5, 12),
        ("now!", 13, 17),
    ]


def test_words_beyond_the_length_have_no_tag(client):
    (row,) = ask(client, "tag", "names", "word " * 20).json()["data"]
    assert row["truncated"]
    assert len(row["tags"]) == 8


def test_words_find_their_tokens_whatever_the_characters(client):
    (row,) = ask(client, "tag", "names", "häß 日本 ok").json()["data"]
    assert [tag["word"] for tag in row["tags"]] == ["häß", "日本", "ok"]


def test_embeddings_are_of_length_one_and_the_heads_own(client, home):
    (row,) = ask(client, "embeddings", "vector", "hello you").json()["data"]
    assert row["embedding"] == pytest.approx(by_hand(home, "vector", "hello you").tolist(), abs=1e-4)
    assert math.hypot(*row["embedding"]) == pytest.approx(1.0, abs=1e-5)


def test_base64_holds_the_same_float32(client):
    plain = ask(client, "embeddings", "vector", "hello").json()["data"][0]["embedding"]
    coded = ask(client, "embeddings", "vector", "hello", encoding_format="base64").json()["data"][0]["embedding"]
    data = base64.b64decode(coded)
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == pytest.approx(plain, abs=1e-4)


def test_fewer_dimensions_are_the_leading_ones_at_length_one(client):
    whole = ask(client, "embeddings", "vector", "hello").json()["data"][0]["embedding"]
    short = ask(client, "embeddings", "vector", "hello", dimensions=8).json()["data"][0]["embedding"]
    norm = math.hypot(*whole[:8])
    assert short == pytest.approx([value / norm for value in whole[:8]], abs=1e-4)


def test_more_dimensions_than_there_are_is_refused_with_both_numbers(client):
    error = ask(client, "embeddings", "vector", "hello", dimensions=99).json()["error"]
    assert error["param"] == "dimensions"
    assert "99" in error["message"]
    assert "32" in error["message"]


def test_token_ids_may_be_embedded(client):
    ids = client.post("/tokenize", json={"prompt": "hello", "add_special_tokens": False}).json()["tokens"]
    by_ids = ask(client, "embeddings", "vector", [ids]).json()["data"][0]["embedding"]
    by_text = ask(client, "embeddings", "vector", "hello").json()["data"][0]["embedding"]
    assert by_ids == pytest.approx(by_text, abs=1e-4)


@pytest.mark.parametrize(
    ("route", "model", "right"),
    [
        ("classify", "writer", "/v1/chat/completions"),
        ("classify", "stars", "/v1/score"),
        ("score", "mood", "/v1/classify"),
        ("tag", "vector", "/v1/embeddings"),
        ("embeddings", "names", "/v1/tag"),
        ("classify", "tiny", "/v1/chat/completions"),
    ],
)
def test_the_wrong_route_is_a_400_that_names_the_right_one(client, route, model, right):
    answer = ask(client, route, model, "x")
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["code"] == "wrong_route"
    assert error["param"] == "model"
    assert right in error["message"]


@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_a_classifier_generates_nothing(client, route):
    body = {"messages": [{"role": "user", "content": "x"}]} if "chat" in route else {"prompt": "x"}
    answer = client.post(f"/v1/{route}", json={"model": "mood", **body})
    assert answer.status_code == 400
    assert "/v1/classify" in answer.json()["error"]["message"]


@pytest.mark.parametrize("input", ["", ["ok", ""]])
def test_an_empty_text_is_refused_by_its_place(client, input):
    error = ask(client, "classify", "mood", input).json()["error"]
    assert error["code"] == "empty_input"
    assert error["param"] == ("input" if input == "" else "input.1")
