"""On a real socket: what only a real connection can show."""

import asyncio
import json
import socket
import threading
import time

import httpx2
import pytest

from umbel.core.errors import UmbelError
from umbel.core.wire.chat import Delta
from umbel.engine import Finished, Handle, Token
from umbel.engine.handle import wake
from umbel.server.generating import Chunker, Parts
from umbel.server.rows import Rows
from umbel.server.sse import EventStream, around, data

LONG = {"model": "tiny", "prompt": "hello", "max_tokens": 500, "ignore_eos": True}


def slow(live):
    """Steps of at least 10 ms: a row of 500 tokens runs for five seconds, however fast the engine is."""
    engine = live.parts.thread.engine
    step = engine.step

    def later():
        time.sleep(0.01)
        return step()

    engine.step = later
    return step


@pytest.fixture
def unhurried(idle):
    """The live server, with slow steps."""
    step = slow(idle)
    yield idle
    idle.parts.thread.engine.step = step


def finished(live):
    return dict(live.parts.thread.stats().finished)


def send(live, path, body):
    """A connection that has asked and will not read."""
    host, port = live.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def test_tokens_arrive_one_after_another_and_not_at_the_end(unhurried):
    with httpx2.stream("POST", f"{unhurried.url}/v1/completions", json={**LONG, "stream": True}) as answer:
        next(answer.iter_lines())
        assert unhurried.parts.thread.stats().running == 1  # the first is here while the row still runs


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_takes_its_row_along(unhurried, wait_until, stream):
    before = finished(unhurried).get("cancelled", 0)
    with send(unhurried, "/v1/completions", {**LONG, "stream": stream}):
        wait_until(lambda: unhurried.parts.thread.stats().running == 1)
    wait_until(lambda: unhurried.parts.thread.stats().running == 0)
    assert finished(unhurried)["cancelled"] == before + 1


def test_a_client_that_goes_away_takes_all_its_texts_along(serve, wait_until):
    with serve(rows_in_flight=2) as live:
        with send(live, "/v1/classify", {"model": "mood", "input": ["hello"] * 2000}):
            wait_until(lambda: finished(live).get("stop", 0) > 2)
        wait_until(lambda: live.parts.service.in_flight == 0)
        assert finished(live)["stop"] < 2000


def test_one_requests_texts_leave_room_in_the_queue(serve):
    with serve(rows_in_flight=4) as live:
        answer = httpx2.post(f"{live.url}/v1/classify", json={"model": "mood", "input": ["hello"] * 50})
        assert len(answer.json()["data"]) == 50


def test_mixed_load_gives_each_request_its_own_adapters_answer(live):
    """Every header names the right version and every text is what the adapter answers alone."""
    models = ["tiny", "writer", "talker", "rhymer"]
    prompts = ["hello", "what now", "the end"]

    def body(model, prompt):
        return {"model": model, "prompt": prompt, "max_tokens": 12}

    def alone(model, prompt):
        return httpx2.post(f"{live.url}/v1/completions", json=body(model, prompt)).json()["choices"][0]["text"]

    expected = {(model, prompt): alone(model, prompt) for model in models for prompt in prompts}
    assert len(set(expected.values())) == len(expected)
    label = httpx2.post(f"{live.url}/v1/classify", json={"model": "mood", "input": "hello"}).json()["data"]

    async def everything():
        async with httpx2.AsyncClient(base_url=live.url, timeout=60) as client:
            asked = [(model, prompt) for model, prompt in expected for _ in range(3)]
            texts = [client.post("/v1/completions", json=body(*one)) for one in asked]
            labels = [client.post("/v1/classify", json={"model": "mood", "input": "hello"}) for _ in range(6)]
            return asked, await asyncio.gather(*texts), await asyncio.gather(*labels)

    asked, texts, labels = asyncio.run(everything())
    for (model, prompt), answer in zip(asked, texts, strict=True):
        assert answer.headers["x-umbel-adapter"] == (model if model == "tiny" else f"{model}:1")
        assert answer.json()["choices"][0]["text"] == expected[model, prompt]
    for answer in labels:
        assert answer.headers["x-umbel-adapter"] == "mood:1"
        assert answer.json()["data"][0]["probs"] == pytest.approx(label[0]["probs"], abs=1e-4)


def test_a_promote_counts_from_the_next_request_and_leaves_a_running_one_alone(live, home):
    contract = home.registry.versions.get("rhymer:1").contract
    first = home.publish("moving", contract, seed=41)
    home.publish("moving", contract, seed=42)
    body = {"model": "moving", "prompt": "hello", "max_tokens": 200, "ignore_eos": True}
    with httpx2.stream("POST", f"{live.url}/v1/completions", json={**body, "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        home.registry.aliases.promote("moving:2")
        after = httpx2.post(f"{live.url}/v1/completions", json={**body, "max_tokens": 4})
        rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert answer.headers["x-umbel-digest"] == first.digest
    assert {chunk["model"] for chunk in rest} == {"moving:1"}
    assert after.headers["x-umbel-adapter"] == "moving:2"


def test_a_stop_lets_running_requests_finish(serve, wait_until):
    with serve(grace=30.0) as live:
        slow(live)
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx2.post(f"{live.url}/v1/completions", json=LONG, timeout=60))
        )
        asking.start()
        wait_until(lambda: live.parts.thread.stats().running == 1)
        live.runner.stop()
        wait_until(lambda: live.parts.service.draining)
        refused = httpx2.post(f"{live.url}/v1/completions", json=LONG)
        ready = httpx2.get(f"{live.url}/ready")
        asking.join(60)
        live.thread.join(20)
    assert answers[0].json()["usage"]["completion_tokens"] == 500
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert refused.headers["retry-after"]
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    assert not live.thread.is_alive()


def test_what_is_unfinished_at_the_deadline_is_told_so(serve):
    with serve(grace=0.0) as live:
        with httpx2.stream("POST", f"{live.url}/v1/completions", json={**LONG, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            live.runner.stop()
            rest = [line for line in lines if line.startswith("data:")]
        live.thread.join(20)
    assert '"code": "shutting_down"' in rest[-1]
    assert "data: [DONE]" not in rest


class Later:
    """Parts that are there from the beginning, and some that come after a while, one after another."""

    def __init__(self, *parts, seconds=0.0):
        self.first, *self.rest = parts
        self.seconds = seconds

    @property
    def ended(self):
        return not (self.first or self.rest)

    def notify(self, call):
        for i in range(len(self.rest)):
            asyncio.get_running_loop().call_later((i + 1) * self.seconds, self.come, call)

    def come(self, call):
        self.first += self.rest.pop(0)
        call()

    def take(self):
        taken, self.first = self.first, b""
        return taken


async def silent():
    await asyncio.Event().wait()


def test_pings_fill_the_silence_and_nothing_else():
    sent = []

    async def send(message):
        sent.append(message.get("body"))

    stream = EventStream(Later(b"one", b"two", seconds=0.05), close=lambda: None, headers={}, ping=0.02, patience=5.0)
    asyncio.run(asyncio.wait_for(stream({"type": "http"}, silent, send), 20))
    assert [part for part in sent if part and not part.startswith(b":")] == [b"one", b"two"]
    assert sent[1:3] == [b"one", b": ping\n\n"]
    assert (sent[0], sent[-1]) == (None, b"")


def test_who_reads_slowly_gets_all_of_it_in_order():
    """Later parts wait for the write that is held up."""
    sent, parts = [], Later(b"0", *(str(i).encode() for i in range(1, 9)), seconds=0.004)

    async def send(message):
        if message.get("body") in (b"0", b"3"):
            await asyncio.sleep(0.01)
        sent.append(message.get("body"))

    stream = EventStream(parts, close=lambda: None, headers={}, ping=5.0, patience=5.0)
    asyncio.run(asyncio.wait_for(stream({"type": "http"}, silent, send), 20))
    assert b"".join(sent[1:]) == b"012345678"
    assert (sent[0], sent[-1]) == (None, b"")


@pytest.mark.parametrize("late", [False, True], ids=["at once", "held up"])
def test_a_write_that_fails_ends_the_stream_with_its_error(late):
    closed = []

    async def send(message):
        if message.get("body"):
            await asyncio.sleep(0.01 * late)
            raise RuntimeError("broken")

    stream = EventStream(Later(b"1", b"2"), close=lambda: closed.append(1), headers={}, ping=5.0, patience=5.0)
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(asyncio.wait_for(stream({"type": "http"}, silent, send), 20))
    assert closed == [1]


def test_a_body_that_never_ends_is_given_up(serve):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with serve(body_seconds=0.2) as live:
        host, port = live.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(head + b"Content-Length: 9\r\n\r\n{")
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_reader_that_takes_nothing_is_dropped_and_its_row_stopped():
    closed, parts = [], Later(b"data: {}\n\n", b"data: {}\n\n")

    async def stuck(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    stream = EventStream(parts, close=lambda: closed.append(1), headers={}, ping=5.0, patience=0.01)
    asyncio.run(asyncio.wait_for(stream({"type": "http"}, silent, stuck), 20))
    assert closed == [1]


@pytest.mark.parametrize("sign", ["\n", "\r", "\x85", "\u2028", "\u2029", "\x1c", "\v"])
def test_no_sign_of_a_text_ends_a_line_of_the_stream(sign):
    sent = data(Delta(content=f"a{sign}b")).decode()
    assert len(sent.strip().splitlines()) == 1
    assert json.loads(sent.removeprefix("data: "))["content"] == f"a{sign}b"


ODD = ["", "a", 'quote " and \\ back', "\n\r\t\b\f\x00\x1f\x7f", "\u2028\u2029\x85", "é 漢 \U0001f600", "</s>", "■ ■"]


@pytest.mark.parametrize("text", ODD)
def test_a_chunk_made_of_a_form_has_the_bytes_of_one_made_of_a_model(text):
    def chunk(content):
        return data(Delta(role="assistant", content=content))

    assert around(chunk)(text) == chunk(text)


def test_who_waits_for_the_whole_answer_is_woken_once():
    async def run():
        handle, woken = Handle(None), []
        answering = asyncio.create_task(handle.answer())
        await asyncio.sleep(0)
        handle._go_on = lambda: woken.append(1)
        for number in range(3):
            handle.put(Token(number, "x"))
            wake([handle])
            await asyncio.sleep(0.01)
        assert not woken
        answering.cancel()
        handle._done = True
        wake([handle])
        await asyncio.sleep(0.01)
        assert woken == [1]

    asyncio.run(run())


def test_readers_that_are_told_are_told_in_one_task_a_step():
    async def run():
        told = []
        handles = [Handle(None) for _ in range(3)]
        for handle in handles:
            handle.notify(lambda: told.append(asyncio.current_task()))
        for _ in range(2):
            for handle in handles:
                handle.put(Token(1, "a"))
            wake(handles)
            await asyncio.sleep(0.01)
        assert [len(list(handle.take())) for handle in handles] == [2, 2, 2]
        return told

    told = asyncio.run(run())
    assert [told.count(task) for task in told] == [3] * 6


def test_a_reader_of_many_rows_is_told_once_a_step():
    async def run():
        told, handles = [], [Handle(None) for _ in range(3)]

        def tell():
            told.append(1)

        for handle in handles:
            handle.notify(tell)
            handle.put(Token(1, "a"))
        wake(handles)
        await asyncio.sleep(0.01)
        return told

    assert asyncio.run(run()) == [1]


def rows_of(handles):
    class Service:
        submit = staticmethod(lambda request: handles[request])
        observe = staticmethod(lambda target, finished: None)

    rows = Rows(Service, None)
    rows.submit(range(len(handles)))
    return rows


def test_what_came_before_anybody_asked_for_it_is_not_waited_for():
    """The engine may answer before the request's handler listens; nobody is woken for it any more."""

    async def run():
        handles = [Handle(None), Handle(None)]
        rows = rows_of(handles)
        handles[1].put(Token(1, "a"))
        wake(handles[1:])
        await asyncio.wait_for(rows.arrival(), 5)
        return [place for place, _ in rows.take()]

    assert asyncio.run(run()) == [1]


def test_where_one_row_of_a_stream_fails_the_others_stop_before_anybody_reads_of_it():
    handles = [Handle(None) for _ in range(2)]

    class Plain(Chunker):
        def of(self, place, event):
            return [b"%d" % place]

        def usage(self, counted):
            raise AssertionError

    parts = Parts(rows_of(handles), Plain(None, usage=False))
    handles[0].put(Token(1, "a"))
    handles[1].put(Token(1, "b"))
    parts.begin()
    handles[0].put(Finished("error", error=UmbelError("gone", code="gone")))
    handles[1].put(Token(2, "c"))
    taken = parts.take()
    assert taken.startswith(b"01data: ")
    assert b'"code": "gone"' in taken
    assert parts.ended
    assert [handle.cancelled for handle in handles] == [False, True]
    assert parts.take() == b""
