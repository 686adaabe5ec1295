"""``client.experiments`` and ``client.feedback``, sync and async, against a live server."""

import asyncio
import inspect
from contextlib import suppress

import pytest

from umbel.client import AsyncClient, Client
from umbel.client.experiments import AsyncExperiments, Experiments
from umbel.core.errors import Conflict, GateFailed, NotAllowed, NotFound, UsageError
from umbel.core.wire.experiments import ArmSpec, DecideRequest, ExperimentSpec, MetricSpec
from umbel.registry.records import Scope


@pytest.fixture(scope="module")
def secret(home):
    like = home.registry.versions.get("mood:1").contract
    for seed in (81, 82):
        home.publish("duel", like, seed=seed)
    return home.registry.keys.create("boss", [Scope.PROMOTE, Scope.READ, Scope.INFER])[1]


@pytest.fixture
def api(live, secret):
    with Client(live.url, secret) as opened:
        yield opened
        for one in list(opened.experiments.list("running")):
            opened.experiments.stop(one.name)


def spec(name):
    arms = [ArmSpec(name="control", model="duel:1"), ArmSpec(name="candidate", model="duel:2")]
    return ExperimentSpec(name=name, arms=arms, metrics=[MetricSpec(name="thumbs")])


def test_from_creation_to_feedback_to_the_report(api):
    assert api.experiments.create(spec("duel-1")).status == "running"
    answer = api.classify("duel-1", "hello", unit="zoë")
    assert answer.request_id
    assert api.classify("duel-1", "hello", unit="zoë").model == answer.model
    assert api.feedback("thumbs", True, request_id=answer.request_id).counted
    assert api.feedback("thumbs", 0, experiment="duel-1", unit="zoë").counted
    told = api.experiments.report("duel-1")
    assert sum(told.sample_ratio.observed.values()) == 1
    assert told.effects[0].n + told.effects[0].n_control == 1
    assert {told.effects[0].mean, told.effects[0].mean_control} == {0.5, None}
    assert api.experiments.ramp("duel-1", 0.5).share == 0.5
    assert api.experiments.stop("duel-1", "enough").status == "stopped"


def test_a_key_of_ones_own_makes_feedback_count_once(api):
    api.experiments.create(spec("duel-2"))
    api.classify("duel-2", "hello", unit="ada")
    whose = {"experiment": "duel-2", "unit": "ada", "key": "click-1"}
    assert api.feedback("thumbs", 1, **whose).counted
    assert not api.feedback("thumbs", 1, **whose).counted
    with pytest.raises(Conflict):
        api.feedback("thumbs", 0, **whose)


@pytest.mark.parametrize(
    ("do", "error", "code"),
    [
        (lambda api: api.experiments.report("nope"), NotFound, "experiment_not_found"),
        (lambda api: api.experiments.decide("duel-3"), GateFailed, "undecided"),
        (
            lambda api: api.experiments.decide("duel-3", DecideRequest(force=True, winner="control", reason="x")),
            NotAllowed,
            "insufficient_scope",
        ),
        (lambda api: api.experiments.create(spec("duel-3")), Conflict, "name_taken"),
        (lambda api: api.feedback("thumbs", 1, request_id="unknown"), NotFound, "exposure_not_found"),
        (lambda api: api.classify("duel-3", "x", unit=" "), UsageError, "invalid_unit"),
        (lambda api: api.classify("duel-3", "x", unit="a\r\nb"), UsageError, "invalid_unit"),
    ],
)
def test_what_is_refused_comes_as_umbels_own_error(api, do, error, code):
    with suppress(Conflict):
        api.experiments.create(spec("duel-3"))
    with pytest.raises(error) as caught:
        do(api)
    assert caught.value.code == code


def test_streams_carry_the_request_that_feedback_names(api):
    chunks = list(api.complete_stream("tiny", "hello", unit="ada", max_tokens=2))
    assert len({chunk.request_id for chunk in chunks}) == 1
    assert chunks[0].request_id.startswith("req-")


def test_the_request_id_is_no_part_of_an_answers_value(api):
    first, second = (api.classify("mood", "hello") for _ in range(2))
    assert first.request_id != second.request_id
    assert first == second
    assert "request_id" not in first.model_dump_json()


def test_the_async_client_does_the_same(live, secret):
    async def use():
        async with AsyncClient(live.url, secret) as api:
            await api.experiments.create(spec("duel-4"))
            answer = await api.classify("duel-4", "hello", unit="ada")
            assert (await api.feedback("thumbs", 1, request_id=answer.request_id)).counted
            assert sum((await api.experiments.report("duel-4")).sample_ratio.observed.values()) == 1
            assert "duel-4" in [one.name async for one in api.experiments.list("running")]
            assert (await api.experiments.ramp("duel-4", 0.1)).share == 0.1
            with pytest.raises(GateFailed):
                await api.experiments.decide("duel-4")
            assert (await api.experiments.stop("duel-4")).status == "stopped"

    asyncio.run(use())


def test_both_have_the_same_methods():
    names = [name for name in vars(Experiments) if not name.startswith("_")]
    pairs = [(getattr(Experiments, name), getattr(AsyncExperiments, name)) for name in names]
    for sync, asynchronous in [
        *pairs,
        (Client.feedback, AsyncClient.feedback),
        (Client.classify, AsyncClient.classify),
    ]:
        assert list(inspect.signature(sync).parameters) == list(inspect.signature(asynchronous).parameters)
