import json
import math

import pytest
import torch


def complete(client, **body):
    return client.post("/v1/completions", json={"model": "tiny", "prompt": "hello", "max_tokens": 6, **body})


def chunks_of(answer):
    lines = [line for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_an_answer_carries_the_version_that_gave_it(client, home):
    answer = complete(client, model="writer")
    version = home.registry.versions.get("writer:1")
    assert answer.status_code == 200
    assert answer.json()["model"] == "writer:1"
    assert answer.headers["x-umbel-adapter"] == "writer:1"
    assert answer.headers["x-umbel-digest"] == version.digest
    assert {part.split(";")[0] for part in answer.headers["server-timing"].split(", ")} >= {"queue", "prefill"}


def test_the_backbone_answers_by_its_own_name(client, home):
    answer = complete(client)
    assert answer.headers["x-umbel-adapter"] == "tiny"
    assert answer.headers["x-umbel-digest"] == home.backbone.fingerprint


@pytest.mark.parametrize("form", ["writer", "writer:1", "writer@champion", "writer@latest"])
def test_every_form_of_a_reference_means_the_same_version(client, form):
    assert complete(client, model=form).json()["choices"] == complete(client, model="writer").json()["choices"]


def test_a_digest_names_a_version(client, home):
    digest = home.registry.versions.get("writer:1").digest
    assert complete(client, model=f"writer@{digest}").headers["x-umbel-adapter"] == "writer:1"


def test_adapters_change_the_answer(client):
    texts = {complete(client, model=model).json()["choices"][0]["text"] for model in ("tiny", "writer", "rhymer")}
    assert len(texts) == 3


def test_text_and_its_token_ids_are_one_prompt(client):
    ids = client.post("/tokenize", json={"prompt": "hello"}).json()["tokens"]
    by_text, by_ids = complete(client), complete(client, prompt=ids)
    assert by_text.json()["choices"] == by_ids.json()["choices"]


def test_a_list_of_prompts_gives_a_choice_each_and_their_summed_usage(client):
    both = complete(client, prompt=["hello", "hi there"]).json()
    alone = [complete(client, prompt=prompt).json() for prompt in ("hello", "hi there")]
    assert [choice["text"] for choice in both["choices"]] == [one["choices"][0]["text"] for one in alone]
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    assert both["usage"]["total_tokens"] == sum(one["usage"]["total_tokens"] for one in alone)


def test_lists_of_token_ids_are_prompts_too(client):
    answer = complete(client, prompt=[[104, 105], [106, 107]])
    assert len(answer.json()["choices"]) == 2


def test_usage_counts_tokens(client):
    usage = complete(client, prompt=[1, 2, 3], max_tokens=4, ignore_eos=True).json()["usage"]
    assert usage.pop("prompt_tokens_details") == {"cached_tokens": 0}
    assert usage == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_usage_says_what_was_kept_from_an_earlier_request(client):
    ids = list(range(1, 41))
    first, second = (complete(client, prompt=ids, max_tokens=2).json() for _ in range(2))
    other = complete(client, model="writer", prompt=ids, max_tokens=2).json()
    kept = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (first, second, other)]
    assert kept == [0, 32, 0]
    assert first["choices"] == second["choices"]
    metrics = client.get("/metrics").text
    assert "umbel_prefix_hits_total" in metrics
    assert "umbel_tokens_guessed_total" in metrics


def test_echoed_logprobs_equal_a_full_forward(client, home):
    ids = [104, 101, 108, 108, 111]
    answer = complete(client, model="rhymer", prompt=ids, max_tokens=1, logprobs=2, echo=True).json()
    lists = answer["choices"][0]["logprobs"]
    scores = torch.log_softmax(home.forward("rhymer", ids)[1].logits, dim=-1)
    expected = [float(scores[place, token]) for place, token in enumerate(ids[1:])]
    assert lists["token_logprobs"][0] is None
    assert lists["top_logprobs"][0] is None
    assert lists["token_logprobs"][1:5] == pytest.approx(expected, abs=2e-4)
    assert lists["text_offset"][:5] == [0, 1, 2, 3, 4]
    assert answer["choices"][0]["text"].startswith(home.backbone.tokenizer.decode(ids))


def test_the_greedy_token_is_the_likeliest_by_the_very_same_float(client):
    """What lm-eval compares to tell whether an answer was greedy."""
    lists = complete(client, logprobs=1, max_tokens=6).json()["choices"][0]["logprobs"]
    for chosen, top in zip(lists["token_logprobs"], lists["top_logprobs"], strict=True):
        assert chosen == max(top.values())


def test_scoring_without_generating_gives_the_prompt_alone(client):
    answer = complete(client, max_tokens=0, logprobs=0, echo=True).json()["choices"][0]
    assert answer["text"] == "hello"
    assert answer["finish_reason"] == "length"
    assert len(answer["logprobs"]["tokens"]) == 5


def test_echo_without_logprobs_repeats_the_prompt(client):
    plain = complete(client).json()["choices"][0]["text"]
    assert complete(client, echo=True).json()["choices"][0]["text"] == "hello" + plain


def test_a_seed_repeats_a_draw_and_another_seed_does_not(client):
    def draw(seed):
        return complete(client, temperature=1.5, seed=seed, max_tokens=16).json()["choices"][0]["text"]

    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_a_stop_string_ends_the_text_before_itself(client):
    whole = complete(client, model="talker", max_tokens=12, ignore_eos=True).json()["choices"][0]["text"]
    stop = next(sign for sign in whole[1:] if sign.isascii())
    answer = complete(client, model="talker", max_tokens=12, ignore_eos=True, stop=stop).json()["choices"][0]
    assert answer["text"] == whole[: whole.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_what_the_request_leaves_out_comes_from_the_contract(client):
    usage = client.post("/v1/completions", json={"model": "rhymer", "prompt": "hi", "ignore_eos": True}).json()["usage"]
    assert usage["completion_tokens"] == 8  # the contract's; the class's own default is 64


def test_a_stream_gives_the_same_text_in_pieces(client):
    whole = complete(client, model="talker").json()["choices"][0]
    chunks = chunks_of(complete(client, model="talker", stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert all(chunk["usage"] is None for chunk in chunks)


def test_a_stream_of_several_prompts_keeps_them_apart(client):
    prompts = ["hello", "hi there", "you"]
    whole = [choice["text"] for choice in complete(client, prompt=prompts).json()["choices"]]
    chunks = chunks_of(complete(client, prompt=prompts, stream=True, stream_options={"include_usage": True}))
    for place, text in enumerate(whole):
        pieces = [c["choices"][0]["text"] for c in chunks if c["choices"] and c["choices"][0]["index"] == place]
        assert "".join(pieces) == text
    assert chunks[-1]["choices"] == []
    again = complete(client, prompt=prompts).json()["usage"]  # prompts may have been kept from the first
    assert {**chunks[-1]["usage"], "prompt_tokens_details": {}} == {**again, "prompt_tokens_details": {}}


def test_a_stream_with_echo_and_logprobs_gives_the_same_lists(client):
    fields = {"echo": True, "logprobs": 1}
    whole = complete(client, **fields).json()["choices"][0]
    chunks = chunks_of(complete(client, stream=True, **fields))
    parts = [chunk["choices"][0] for chunk in chunks]
    joined = [value for part in parts if part["logprobs"] for value in part["logprobs"]["token_logprobs"]]
    offsets = [value for part in parts if part["logprobs"] for value in part["logprobs"]["text_offset"]]
    assert joined[0] is None
    assert joined[1:] == pytest.approx(whole["logprobs"]["token_logprobs"][1:], abs=2e-4)
    assert offsets == whole["logprobs"]["text_offset"]
    assert "".join(part["text"] for part in parts) == whole["text"]


def test_a_stream_with_echo_alone_begins_with_the_prompt(client):
    chunks = chunks_of(complete(client, stream=True, echo=True))
    assert chunks[0]["choices"][0]["text"] == "hello"


def test_logprobs_are_finite(client):
    lists = complete(client, logprobs=5).json()["choices"][0]["logprobs"]
    assert all(math.isfinite(value) for value in lists["token_logprobs"])
