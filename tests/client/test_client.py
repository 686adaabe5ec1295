import asyncio
import inspect
import subprocess
import sys

import httpx2
import pytest

from umbel.client import AsyncClient, Client
from umbel.client.adapters import Adapters
from umbel.client.asynchronous import AsyncAdapters
from umbel.core.errors import AuthError, Conflict, NotAllowed, NotFound, Overloaded, UmbelError, Unavailable, UsageError


@pytest.fixture(scope="module")
def api(live):
    with Client(live.url) as opened:
        yield opened


def test_everything_that_a_server_answers_comes_back_typed(api, live):
    assert api.models().data[0].id == "tiny"
    assert api.model("writer").root == "writer:1"
    assert api.chat("talker", "hello", max_tokens=3).usage.prompt_tokens > 0
    assert api.complete("tiny", "hello", max_tokens=3).choices[0].finish_reason in ("stop", "length")
    assert api.classify("mood", "hello").data[0].labels == ["bad", "good", "so-so"]
    assert api.classify("mood", ["hello", "you"]).model == "mood:1"
    assert list(api.classify(["mood", "topics"], "hello").results) == ["mood", "topics"]
    assert isinstance(api.score("stars", "hello").data[0].score, float)
    assert api.tag("names", [["Anna", "left"]]).data[0].tags[1].word == "left"
    assert len(api.embed("vector", "hello", dimensions=4).data[0].embedding) == 4
    assert api.tokenize("hé").count == 3
    assert api.status().backbone == "tiny"
    assert api.ready().ready


def test_a_stream_says_what_the_answer_says(api):
    whole = api.chat("talker", "hello", max_tokens=8).text
    assert "".join(chunk.text for chunk in api.chat_stream("talker", "hello", max_tokens=8)) == whole
    whole = api.complete("rhymer", "hello", max_tokens=8).text
    assert "".join(chunk.text for chunk in api.complete_stream("rhymer", "hello", max_tokens=8)) == whole


def test_messages_may_be_a_conversation(api):
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert api.chat("tiny", messages, max_tokens=2).usage.completion_tokens == 2


def test_leaving_a_stream_stops_the_row(idle, wait_until):
    before = idle.parts.thread.stats().finished.get("cancelled", 0)
    with Client(idle.url) as client:
        stream = client.complete_stream("tiny", "hello", max_tokens=400, ignore_eos=True)
        next(stream)
        stream.close()
        wait_until(lambda: idle.parts.thread.stats().finished.get("cancelled", 0) == before + 1)


@pytest.mark.parametrize(
    ("ask", "error", "code"),
    [
        (lambda api: api.classify("nope", "x"), NotFound, "adapter_not_found"),
        (lambda api: api.classify("writer", "x"), UsageError, "wrong_route"),
        (lambda api: api.chat("tiny", "x", n=2), UsageError, "unsupported_parameter"),
        (lambda api: next(api.chat_stream("nope", "x")), NotFound, "adapter_not_found"),
        (lambda api: api.adapters.get("nope"), NotFound, "adapter_not_found"),
        (lambda api: api.adapters.promote("mood", 1), AuthError, "missing_api_key"),
    ],
)
def test_errors_are_umbels_own_with_code_hint_and_request_id(api, ask, error, code):
    with pytest.raises(error) as met:
        ask(api)
    assert met.value.code == code
    assert met.value.hint
    assert "Fix:" not in met.value.message
    assert met.value.request_id.startswith("req-")


def test_a_missing_key_is_told_as_this_client_is_given_one(api):
    with pytest.raises(AuthError) as met:
        api.adapters.promote("mood", 1)
    assert met.value.hint.startswith(
        "give the client api_key=KEY, or set UMBEL_API_KEY; umbel keys create NAME --scope"
    )
    assert "header" not in met.value.hint


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda api: api.classify("moood", "x"), "did you mean mood? client.adapters.list() (umbel adapters list)"),
        (lambda api: api.classify("mood:99", "x"), 'client.adapters.versions("mood") (umbel adapters show mood)'),
        (lambda api: api.classify("writer", "x"), "ask client.chat (/v1/chat/completions) or client.complete"),
        (lambda api: api.chat("mood", "x"), "ask client.classify (/v1/classify)"),
    ],
)
def test_the_fix_is_told_as_a_call_of_this_client_and_as_a_command_after_it(api, ask, told):
    with pytest.raises(UmbelError) as met:
        ask(api)
    assert told in met.value.hint


def test_a_key_is_sent_and_its_scope_counts(live, home):
    _, secret = home.registry.keys.create("reader", ["read"])
    with Client(live.url, secret) as client, pytest.raises(NotAllowed):
        client.adapters.promote("mood", 1)


def test_the_key_and_the_url_come_from_the_environment(live, home, monkeypatch):
    monkeypatch.setenv("UMBEL_URL", f"{live.url}/v1/")
    monkeypatch.setenv("UMBEL_API_KEY", home.registry.keys.create("env", ["promote"])[1])
    with Client() as client:
        assert client.adapters.promote("mood", 1).target == 1


def test_the_registry_is_read_and_changed(live, home):
    contract = home.registry.versions.get("mood:1").contract
    for seed in (61, 62):
        home.publish("shared", contract, seed=seed)
    _, secret = home.registry.keys.create("keeper", ["promote", "publish"])
    with Client(live.url, secret) as client:
        adapters = client.adapters
        assert [version.number for version in adapters.versions("shared")] == [2, 1]
        assert adapters.promote("shared", 2, expect=1, reason="better").target == 2
        assert client.classify("shared", "x").model == "shared:2"
        assert adapters.rollback("shared").target == 1
        assert [event.kind for event in adapters.history("shared", "champion")] == ["set", "set", "rollback"]
        adapters.set_alias("shared", "canary", 2)
        assert adapters.aliases("shared") == {"canary": 2, "champion": 1}
        assert adapters.diff("shared", 1, 2).metrics[0].after == 0.62
        assert adapters.version("shared", "canary").seed == 62
        assert adapters.yank("shared", 2, reason="bad").state == "yanked"
        assert adapters.unyank("shared", 2).state == "ready"
        with pytest.raises(Conflict):
            adapters.promote("shared", 2, expect=2)


def test_lists_page_by_themselves(api, home):
    everything = [adapter.name for adapter in api.adapters.list()]
    assert [adapter.name for adapter in api.adapters.list(limit=2)] == everything == sorted(everything)
    assert [adapter.name for adapter in api.adapters.list(metric=["accuracy>=0.01", "accuracy<=0.02"], limit=1)] == [
        "talker",
        "writer",
    ]


class Scripted(httpx2.BaseTransport):
    """Answers by a script and remembers what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def handle_request(self, request):
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def full(status=503, code="queue_full", wait="1"):
    headers = {"retry-after-ms": wait} if wait else {}
    return httpx2.Response(status, json={"error": {"message": "full. Fix: wait", "code": code}}, headers=headers)


def models():
    return httpx2.Response(200, json={"data": []})


def test_a_full_queue_is_asked_again_after_the_time_it_names():
    transport = Scripted(full(), full(), models())
    with Client("http://x", transport=transport) as client:
        assert client.models().data == []
    assert len(transport.asked) == 3


def test_a_lost_connection_is_made_again():
    transport = Scripted(httpx2.ConnectError("refused"), models())
    with Client("http://x", transport=transport) as client:
        assert client.models().data == []


def test_a_full_queue_that_stays_full_is_the_servers_own_error():
    transport = Scripted(full(), full(), full(), models())
    with Client("http://x", transport=transport) as client, pytest.raises(Overloaded) as met:
        client.status()
    assert len(transport.asked) == 3
    assert (met.value.code, met.value.hint, met.value.retry_after) == ("queue_full", "wait", 0.001)


@pytest.mark.parametrize("answer", [full(503, "version_yanked", None), full(409, "alias_moved", None)])
def test_what_waiting_cannot_help_is_not_asked_again(answer):
    transport = Scripted(answer, models())
    with Client("http://x", transport=transport) as client, pytest.raises(UmbelError):
        client.status()
    assert len(transport.asked) == 1


def test_a_rollback_is_never_sent_twice_by_itself():
    transport = Scripted(httpx2.ReadError("cut"), models())
    with Client("http://x", transport=transport) as client, pytest.raises(Unavailable):
        client.adapters.rollback("mood")
    assert len(transport.asked) == 1


def test_a_server_that_is_not_there_is_told_with_the_command_that_starts_it():
    with Client("http://127.0.0.1:9") as client, pytest.raises(Unavailable) as met:
        client.models()
    assert met.value.code == "server_unreachable"
    assert "umbel serve" in met.value.hint


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost:8000", "elsewhere"])
def test_an_address_without_its_scheme_is_told_with_it(url):
    with pytest.raises(UsageError) as met:
        Client(url)
    assert (met.value.code, met.value.hint) == ("invalid_url", f"write http://{url}")


def test_something_else_that_answers_is_no_umbel():
    transport = Scripted(httpx2.Response(502, text="<html>bad gateway</html>"))
    with Client("http://x", transport=transport) as client, pytest.raises(UmbelError) as met:
        client.models()
    assert met.value.code == "not_umbel"


def test_a_stream_that_breaks_off_raises_what_the_server_said():
    lines = (
        b'data: {"id":"1","created":1,"model":"m","choices":[]}\n\n: ping\n\n'
        b'data: {"error": {"message": "nan. Fix: retrain", "code": "non_finite_output"}}\n\n'
    )
    with Client("http://x", transport=Scripted(httpx2.Response(200, content=lines))) as client:
        stream = client.complete_stream("m", "x")
        assert next(stream).id == "1"
        with pytest.raises(UmbelError) as met:
            next(stream)
    assert (met.value.code, met.value.hint) == ("non_finite_output", "retrain")


def test_names_with_slashes_stay_one_part_of_the_path():
    transport = Scripted(full(404, "adapter_not_found", None))
    with Client("http://x", transport=transport) as client, pytest.raises(NotFound):
        client.adapters.get("../../v1/models")
    assert transport.asked[0].url.raw_path == b"/v1/adapters/..%2F..%2Fv1%2Fmodels"


def test_the_async_client_gives_the_same_answers(live, api):
    async def everything():
        async with AsyncClient(live.url) as client:
            streamed = [chunk.text async for chunk in client.chat_stream("talker", "hello", max_tokens=6)]
            completed = [chunk.text async for chunk in client.complete_stream("rhymer", "hello", max_tokens=6)]
            names = [adapter.name async for adapter in client.adapters.list(limit=3)]
            label, chat, many = await asyncio.gather(
                client.classify("mood", "hello"),
                client.chat("talker", "hello", max_tokens=6),
                client.score("stars", ["a", "b"]),
            )
            with pytest.raises(NotFound) as met:
                await client.classify("nope", "x")
            return "".join(streamed), "".join(completed), names, label, chat, many, met.value.request_id

    streamed, completed, names, label, chat, many, request_id = asyncio.run(everything())
    assert streamed == chat.text == api.chat("talker", "hello", max_tokens=6).text
    assert completed == api.complete("rhymer", "hello", max_tokens=6).text
    assert names == [adapter.name for adapter in api.adapters.list()]
    assert label.data[0].label == api.classify("mood", "hello").data[0].label
    assert len(many.data) == 2
    assert request_id


@pytest.mark.parametrize(("one", "other"), [(Client, AsyncClient), (Adapters, AsyncAdapters)])
def test_both_clients_offer_the_same_with_the_same_parameters(one, other):
    def offered(kind):
        public = {name: value for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}
        return {
            name: [str(one) for one in inspect.signature(value).parameters.values()] for name, value in public.items()
        }

    assert offered(one) == offered(other)


def test_the_client_imports_neither_torch_nor_the_server():
    code = (
        "import sys, umbel.client; "
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'fastapi', 'sqlalchemy') "
        "or m.startswith(('umbel.server', 'umbel.engine'))])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
