"""The unmodified OpenAI SDK against a real server."""

import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def sdk(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_models_are_listed_and_found(sdk):
    names = [model.id for model in sdk.models.list()]
    assert names[0] == "tiny"
    assert {"writer", "mood", "vector"} <= set(names)
    assert sdk.models.retrieve("writer").id == "writer"
    assert sdk.models.retrieve("writer:1").parent == "tiny"


def test_a_chat_answers(sdk):
    answer = sdk.chat.completions.create(model="talker", messages=HELLO, max_tokens=5, seed=1)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint.startswith("fp_")


def test_a_chat_streams_what_it_would_have_said(sdk):
    whole = sdk.chat.completions.create(model="talker", messages=HELLO, max_tokens=8)
    options = {"include_usage": True}
    stream = sdk.chat.completions.create(
        model="talker", messages=HELLO, max_tokens=8, stream=True, stream_options=options
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0, "the second one began like the first"


def test_the_raw_response_carries_the_version(sdk):
    raw = sdk.chat.completions.with_raw_response.create(model="writer", messages=HELLO, max_tokens=2)
    assert raw.headers["x-umbel-adapter"] == "writer:1"
    assert raw.headers["x-umbel-digest"].startswith("sha256:")
    assert raw.parse()._request_id == raw.headers["x-request-id"]


def test_completions_with_logprobs_and_echo(sdk):
    answer = sdk.completions.create(model="rhymer", prompt=[104, 105], max_tokens=1, logprobs=1, echo=True)
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 3


def test_vllms_extras_go_in_the_extra_body(sdk):
    extra = {"min_tokens": 6, "top_k": 5, "ignore_eos": True}
    answer = sdk.completions.create(model="tiny", prompt="hi", max_tokens=6, extra_body=extra)
    assert answer.usage.completion_tokens == 6


def test_embeddings_are_vectors_whatever_the_encoding(sdk):
    coded = sdk.embeddings.create(model="vector", input=["hello", "you"])
    plain = sdk.embeddings.create(model="vector", input=["hello", "you"], encoding_format="float")
    assert len(coded.data) == 2
    assert coded.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-4)


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (openai.NotFoundError, {"model": "nope"}),
        (openai.BadRequestError, {"model": "mood"}),
        (openai.BadRequestError, {"model": "tiny", "n": 3}),
        (openai.BadRequestError, {"model": "tiny", "extra_body": {"nonsense": 1}}),
        (openai.BadRequestError, {"model": "tiny", "max_tokens": 5000}),
    ],
)
def test_errors_are_the_sdks_own_types(sdk, error, fields):
    with pytest.raises(error) as met:
        sdk.chat.completions.create(messages=HELLO, **fields)
    assert met.value.code
    assert met.value.request_id.startswith("req-")
    assert "Fix:" in met.value.message


def test_a_key_is_asked_for_by_the_sdks_own_errors(serve, home):
    infer, read = (home.registry.keys.create(name, [name])[1] for name in ("infer", "read"))
    with serve(require_keys=True) as live:

        def client(key):
            return openai.OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0)

        with pytest.raises(openai.AuthenticationError):
            client("wrong").models.list()
        with pytest.raises(openai.PermissionDeniedError):
            client(infer).models.list()
        assert client(read).models.list().data
        assert client(infer).chat.completions.create(model="tiny", messages=HELLO, max_tokens=1).choices


def test_leaving_a_stream_early_ends_the_row(sdk, idle, wait_until):
    before = idle.parts.thread.stats().finished.get("cancelled", 0)
    extra = {"ignore_eos": True}
    stream = sdk.completions.create(model="tiny", prompt="hi", max_tokens=450, stream=True, extra_body=extra)
    next(iter(stream))
    stream.close()
    wait_until(lambda: idle.parts.thread.stats().finished.get("cancelled", 0) == before + 1)
