"""`umbel bench`: what is asked of whom is reproducible, figures are of what was seen, and failures are told."""

import asyncio
import json
import threading
from collections import Counter

import pytest

from umbel.adapters.peft_io import export_files
from umbel.cli.bench import told
from umbel.cli.load_shape import Load, Popularity, Seen, Shape, put_load, quantile
from umbel.core.contract import Contract
from umbel.core.errors import Overloaded
from umbel.server.app import create_app
from umbel.server.assembly import running
from umbel.server.runner import Runner, bind, url_of
from umbel.server.service import Capacity, ServerConfig

SMALL = ("--requests", "6", "--concurrent", "3", "--prompt-tokens", "5", "--new-tokens", "4")


def shape(**given):
    usual = {"requests": 12, "concurrent": 4, "prompt_tokens": 3, "new_tokens": 2, "popularity": Popularity.UNIFORM}
    return Shape(**usual | given)


@pytest.fixture
def rhyme(registry, made):
    adapter = made(7, contract=Contract(output_head="generate"))
    registry.publish(
        export_files(adapter, backbone_name="tiny"),
        name="rhyme",
        method=adapter.method.name,
        config=adapter.config,
        contract=adapter.contract,
        backbone=adapter.backbone,
        n_params=adapter.num_parameters,
    )


@pytest.mark.parametrize(
    ("popularity", "asked"),
    [
        (Popularity.UNIFORM, {"a": 4, "b": 4, "c": 4}),
        (Popularity.ONE_HOT, {"a": 12}),
    ],
)
def test_requests_fall_on_the_names_as_the_popularity_says(popularity, asked):
    assert Counter(shape(popularity=popularity).wearers(["a", "b", "c"])) == asked


def test_zipf_asks_the_second_name_half_as_often_as_the_first():
    drawn = Counter(shape(popularity=Popularity.ZIPF, requests=11_000).wearers(["a", "b", "c"]))
    assert drawn["a"] == pytest.approx(6000, rel=0.05)  # 1 : 1/2 : 1/3
    assert drawn["b"] == pytest.approx(3000, rel=0.05)
    assert drawn["c"] == pytest.approx(2000, rel=0.05)


def test_the_same_seed_asks_the_same_and_another_does_not():
    one, again, other = (shape(popularity=Popularity.ZIPF, seed=seed) for seed in (3, 3, 4))
    ids = list(range(100))
    assert one.prompts(ids) == again.prompts(ids) != other.prompts(ids)
    assert one.wearers("ab") == again.wearers("ab")


def test_never_more_than_the_concurrent_requests_are_on_their_way():
    now, most = 0, 0

    async def ask(model, prompt):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        yield None
        now -= 1

    load = asyncio.run(put_load(shape(), ["a"], [1], ask))
    assert (most, len(load.answered)) == (4, 12)


def test_a_request_that_fails_is_kept_with_its_error_and_the_rest_is_asked():
    async def ask(model, prompt):
        if model == "bad":
            raise Overloaded("full.", code="queue_full")
        yield None

    load = asyncio.run(put_load(shape(), ["good", "bad"], [1], ask))
    assert (len(load.seen), len(load.answered)) == (12, 6)
    assert {str(one.error) for one in load.seen if one.model == "bad"} == {"full."}


def test_tokens_that_came_together_are_all_counted_and_no_gap_is_made_up():
    async def ask(model, prompt):
        yield None
        yield None
        yield 5

    load = asyncio.run(put_load(shape(requests=1), ["a"], [1], ask))
    assert (load.seen[0].tokens, len(load.gaps)) == (5, 1)


@pytest.mark.parametrize(("percent", "value"), [(50, 5), (95, 10), (90, 9), (1, 1), (100, 10)])
def test_a_percentile_is_a_value_that_was_seen(percent, value):
    assert quantile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], percent) == value


def test_figures_are_of_what_was_seen():
    class Asked:
        where, names = "here", ["a", "b"]

    load = Load(
        2.0, [Seen("a", 0.0, [0.5, 0.6, 0.9], 3), Seen("b", 0.25, [0.5], 1), Seen("b", 1.0, error=Overloaded("x"))]
    )
    found = told(shape(), load, {"adapters": 10}, Asked)
    assert (found["tokens"], found["tokens_per_second"], found["failed"]) == (4, 2.0, 1)
    assert found["first_token_ms"] == {"p50": 250.0, "p95": 500.0, "p99": 500.0}
    assert found["between_tokens_ms"] == {"p50": 100.0, "p95": 300.0, "p99": 300.0}
    assert found["answer_ms"]["p99"] == 900.0
    assert found["adapters"]["b"] == {"requests": 1, "first_token_ms": {"p50": 250.0, "p95": 250.0, "p99": 250.0}}


def test_the_bare_backbone_and_adapters_of_any_head_take_a_load_in_this_process(run, rhyme):
    found = json.loads(run("bench", "rhyme", "mood", "tiny", *SMALL, "--json").out)
    assert found["tokens"] == 2 * 4 + 2 * 1 + 2 * 4  # a classifier answers once
    assert {name: one["requests"] for name, one in found["adapters"].items()} == {"rhyme:1": 2, "mood:1": 2, "tiny": 2}
    assert found["memory_bytes"]["adapters"] > 0
    assert found["memory_bytes"]["process"] > 10_000_000
    assert len(found["between_tokens_ms"]) == 3


def test_a_table_tells_speed_latencies_and_adapters(run):
    answer = run("bench", *SMALL)
    assert answer.code == 0
    assert "tokens/s" in answer.out
    heads = [line.split("\t")[0] for line in answer.out.splitlines() if "\t" in line]
    assert heads == ["MILLISECONDS", "first token", "between tokens", "whole answer", "ADAPTER", "tiny"]


def test_a_plot_is_a_png(run, tmp_path):
    file = tmp_path / "bench.png"
    assert run("bench", *SMALL, "--plot", str(file)).code == 0
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def served(registry, tiny, rhyme):
    """The URL of a server on this test's home."""
    listening, ready = bind("127.0.0.1", 0), threading.Event()
    capacity = Capacity(max_rows=4, kv_bytes=4_000_000, adapter_bytes=2_000_000)
    with running(tiny, registry, capacity, ServerConfig()) as parts:
        runner = Runner(create_app(parts.service), parts.service, parts.thread, grace=1.0, on_ready=ready.set)
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        assert ready.wait(20)
        yield url_of(listening)
        runner.stop()
        thread.join(20)
    listening.close()


def test_a_server_takes_the_same_load_and_streams_every_token(run, served):
    found = json.loads(run("bench", "rhyme", *SMALL, "--url", served, "--json").out)
    assert found["tokens"] == 6 * 4
    assert found["failed"] == 0
    assert served in found["asked"]
    assert found["memory_bytes"]["adapters"] > 0


def test_a_classifier_of_a_server_is_refused_since_it_streams_nothing(run, served):
    answer = run("bench", "mood", *SMALL, "--url", served)
    assert answer.code == 2
    assert "leave out --url" in answer.err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("nope",), 3, "nope"),
        (("--popularity", "fame"), 2, "zipf"),
        (("--plot", "absent/bench.png"), 2, "absent"),
        (("--prompt-tokens", "100000"), 2, "100000"),
        (("--url", "http://127.0.0.1:9"), 1, "umbel serve"),
    ],
)
def test_what_cannot_be_measured_is_told_with_its_exit_code(run, words, code, told):
    answer = run("bench", *words, *SMALL) if "--prompt-tokens" not in words else run("bench", *SMALL[:4], *words)
    assert answer.code == code
    assert told in answer.err.replace(",", "").replace(" ", "") or told in answer.err
