import json

import pytest


def chat(client, model="tiny", messages=None, **body):
    messages = messages or [{"role": "user", "content": "hello"}]
    return client.post("/v1/chat/completions", json={"model": model, "messages": messages, "max_tokens": 6, **body})


def text_of(answer):
    return answer.json()["choices"][0]["message"]["content"]


def completed(client, model, prompt):
    body = {"model": model, "prompt": prompt, "max_tokens": 6}
    return client.post("/v1/completions", json=body).json()["choices"][0]["text"]


def test_the_last_message_fills_an_adapters_plain_template(client):
    assert text_of(chat(client, "writer")) == completed(client, "writer", "Q: hello\nA:")


def test_braces_in_a_text_stay_as_they_are(client):
    messages = [{"role": "user", "content": "{text} {0}"}]
    assert text_of(chat(client, "writer", messages)) == completed(client, "writer", "Q: {text} {0}\nA:")


@pytest.mark.parametrize("model", ["tiny", "talker"])
def test_a_conversation_goes_through_the_backbones_own_template(client, model):
    messages = [
        {"role": "system", "content": "short"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "you?"},
    ]
    rendered = "<|system|>short\n<|user|>hi\n<|assistant|>yes\n<|user|>you?\n<|assistant|>"
    assert text_of(chat(client, model, messages)) == completed(client, model, rendered)


def test_a_developer_message_is_a_system_message_and_parts_are_joined(client):
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    one = chat(client, messages=[{"role": "developer", "content": "x"}, {"role": "user", "content": parts}])
    other = chat(client, messages=[{"role": "system", "content": "x"}, {"role": "user", "content": "hello"}])
    assert text_of(one) == text_of(other)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        [{"role": "assistant", "content": "b"}],
    ],
)
def test_a_plain_template_refuses_a_history_rather_than_dropping_it(client, messages):
    error = chat(client, "writer", messages).json()["error"]
    assert error["code"] == "history_not_supported"
    assert error["param"] == "messages"


def test_max_completion_tokens_is_the_newer_name_and_stands_above_the_older(client):
    usage = chat(client, max_completion_tokens=3, ignore_eos=True).json()["usage"]
    assert usage["completion_tokens"] == 3


def test_logprobs_name_the_chosen_token_and_its_rivals(client):
    answer = chat(client, logprobs=True, top_logprobs=3).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    for token in content:
        assert len(token["top_logprobs"]) == 3
        assert token["logprob"] == token["top_logprobs"][0]["logprob"]  # greedy
        assert token["bytes"] is None or bytes(token["bytes"]).decode() == token["token"]


def test_logprobs_alone_name_no_rivals(client):
    content = chat(client, logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert content
    assert all(token["top_logprobs"] == [] for token in content)


def test_a_stream_begins_with_the_role_and_ends_with_usage_and_done(client):
    answer = chat(client, "talker", stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-umbel-adapter"] == "talker:1"
    lines = [line for line in answer.text.split("\n\n") if line]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert lines[-1] == "data: [DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["finish_reason"]
    assert chunks[-2]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"] == []
    again = chat(client, "talker").json()["usage"]  # its prompt may have been kept from the first
    assert {**chunks[-1]["usage"], "prompt_tokens_details": {}} == {**again, "prompt_tokens_details": {}}
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]]
    assert "".join(pieces) == text_of(chat(client, "talker"))
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_streams_logprobs_come_with_their_token(client):
    answer = chat(client, stream=True, logprobs=True, top_logprobs=1)
    chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    scored = [chunk["choices"][0]["logprobs"]["content"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    whole = chat(client, logprobs=True, top_logprobs=1).json()["choices"][0]["logprobs"]["content"]
    assert [token["token"] for part in scored for token in part] == [token["token"] for token in whole]


@pytest.mark.parametrize(
    "field",
    [
        {"user": "me"},
        {"metadata": {"a": "b"}},
        {"store": True},
        {"service_tier": "auto"},
        {"safety_identifier": "x"},
        {"prompt_cache_key": "x"},
        {"n": 1},
        {"tools": []},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"frequency_penalty": 0},
        {"presence_penalty": 0.0},
        {"logit_bias": {}},
        {"modalities": ["text"]},
        {"parallel_tool_calls": True},
    ],
)
def test_fields_without_effect_change_nothing(client, field):
    assert text_of(chat(client, **field)) == text_of(chat(client))


@pytest.mark.parametrize(
    "field",
    [
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"functions": [{}]},
        {"function_call": {"name": "f"}},
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"5": 100}},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -1},
        {"audio": {}},
        {"modalities": ["audio"]},
        {"reasoning_effort": "high"},
        {"verbosity": "low"},
        {"web_search_options": {}},
        {"moderation": {"model": "m"}},
    ],
)
def test_fields_that_are_not_served_are_refused_with_the_reason(client, field):
    answer = chat(client, **field)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["code"] == "unsupported_parameter"
    assert error["param"] in field
    assert error["param"] in error["message"]
    assert "Fix:" in error["message"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "unsupported_content"),
        ({"role": "user", "content": None}, "invalid_content"),
        ({"role": "tool", "content": "x"}, "invalid_value"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "unsupported_parameter"),
        ({"role": "user", "content": "x", "colour": "red"}, "unknown_field"),
        ({"role": "user"}, "missing_field"),
    ],
)
def test_messages_that_cannot_be_read_are_refused(client, message, code):
    answer = chat(client, messages=[message])
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code


def test_an_assistant_message_goes_back_as_the_sdk_dumps_it(client):
    dumped = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "tool_calls": None,
    }
    answer = chat(client, messages=[{"role": "user", "content": "a"}, dumped, {"role": "user", "content": "b"}])
    assert answer.status_code == 200
