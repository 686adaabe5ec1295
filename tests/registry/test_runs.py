from concurrent.futures import ThreadPoolExecutor

import pytest

from umbel.core.errors import Conflict, NotFound
from umbel.registry.records import MetricPoint, RunStatus


@pytest.fixture
def run(registry):
    return registry.runs.start(name="sentiment", params={"lr": 1e-3}, seed=7)


def test_a_run_tells_what_it_is_doing(registry, run):
    registry.runs.metrics(run, 1, {"loss": 2.0, "grad": 0.5})
    registry.runs.metrics(run, 2, {"loss": 1.5})
    registry.runs.event(run, "saved", level="warning", data={"path": "x"})
    registry.runs.finish(run, status="succeeded", summary={"accuracy": 0.9})
    told = registry.runs.get(run)
    assert (told.name, told.status, told.params, told.seed) == ("sentiment", RunStatus.SUCCEEDED, {"lr": 1e-3}, 7)
    assert told.summary == {"accuracy": 0.9}
    assert told.finished_at >= told.started_at
    assert registry.runs.points(run, key="loss") == (MetricPoint("loss", 1, 2.0), MetricPoint("loss", 2, 1.5))
    assert [point.key for point in registry.runs.points(run)] == ["grad", "loss", "loss"]
    saved = registry.runs.events(run)[1]
    assert (saved.level, saved.message, saved.data) == ("warning", "saved", {"path": "x"})


def test_a_step_that_is_measured_again_replaces_the_first_time(registry, run):
    registry.runs.metrics(run, 1, {"loss": 2.0})
    registry.runs.metrics(run, 1, {"loss": 3.0})
    assert registry.runs.points(run) == (MetricPoint("loss", 1, 3.0),)


def test_a_loss_that_is_no_number_is_kept_as_such(registry, run):
    registry.runs.metrics(run, 1, {"loss": float("nan")})
    registry.runs.metrics(run, 2, {"loss": float("inf")})
    assert [point.value for point in registry.runs.points(run)] == [None, None]


def test_events_are_numbered_without_a_gap_even_from_many_threads(registry, run):
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: registry.runs.event(run, str(number)), range(24)))
    assert [told.seq for told in registry.runs.events(run)] == list(range(1, 26))
    assert [told.seq for told in registry.runs.events(run, after=20, limit=3)] == [21, 22, 23]


def test_a_finished_run_stays_as_it_ended(registry, run):
    registry.runs.finish(run, status="failed", error="out of memory")
    registry.runs.finish(run, status="failed", error="said twice")
    with pytest.raises(Conflict):
        registry.runs.finish(run, status="succeeded")
    with pytest.raises(Conflict):
        registry.runs.cancel(run)
    assert registry.runs.get(run).error == "out of memory"


def test_cancelling_asks_a_working_run_and_ends_a_waiting_one(registry, run):
    waiting = registry.runs.enqueue(name="other", params={}, seed=0)
    registry.runs.cancel(run)
    registry.runs.cancel(waiting)
    assert registry.runs.cancelled(run)
    assert registry.runs.get(run).status == RunStatus.RUNNING
    assert registry.runs.cancelled(waiting)
    assert registry.runs.get(waiting).status == RunStatus.CANCELLED
    assert registry.runs.lease("worker") is None


def test_each_waiting_run_is_leased_once_oldest_first(registry):
    ids = [registry.runs.enqueue(name=f"task{number}", params={}, seed=0) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        leased = list(pool.map(lambda number: registry.runs.lease(f"worker{number}"), range(6)))
    assert sorted(run.id for run in leased if run) == sorted(ids)
    assert registry.runs.lease("late") is None


def test_a_run_whose_worker_fell_silent_is_taken_over(registry):
    run = registry.runs.enqueue(name="task", params={}, seed=0)
    registry.runs.lease("first")
    assert registry.runs.lease("second") is None
    taken = registry.runs.lease("second", lease_ms=-1)
    assert (taken.id, taken.lease_owner, taken.attempt) == (run, "second", 2)
    assert not registry.runs.heartbeat(run, "first")
    assert registry.runs.heartbeat(run, "second")


def test_a_run_is_taken_by_name_only_from_a_worker_that_is_gone_or_silent(registry):
    run = registry.runs.start(name="task", params={}, seed=0, owner="first")
    with pytest.raises(Conflict) as caught:
        registry.runs.take(run, "second", gone=lambda other: False)
    assert caught.value.code == "run_taken"
    assert "first" in caught.value.message
    assert registry.runs.take(run, "first", gone=lambda other: False).attempt == 1
    assert registry.runs.take(run, "second", gone=lambda other: other == "first").lease_owner == "second"
    taken = registry.runs.take(run, "third", gone=lambda other: False, lease_ms=-1)
    assert (taken.lease_owner, taken.attempt) == ("third", 3)


def test_a_lease_that_was_given_back_is_free_for_who_asks_and_for_no_worker(registry):
    run = registry.runs.start(name="task", params={}, seed=0, owner="first")
    registry.runs.release(run, "second")
    assert registry.runs.get(run).lease_owner == "first"
    registry.runs.release(run, "first")
    assert registry.runs.lease("worker", lease_ms=-1) is None
    assert registry.runs.take(run, "second", gone=lambda other: False).lease_owner == "second"


def test_a_finished_run_needs_no_lease(registry):
    run = registry.runs.start(name="task", params={}, seed=0, owner="first")
    registry.runs.finish(run, status="succeeded")
    assert registry.runs.take(run, "second", gone=lambda other: False).lease_owner is None


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_run_that_ended_badly_is_open_again_for_who_takes_it(registry, end):
    run = registry.runs.start(name="task", params={}, seed=0, owner="first")
    if end == "cancelled":
        registry.runs.cancel(run)
    registry.runs.finish(run, status=end, error="the disk was full")
    assert registry.runs.lease("worker", lease_ms=-1) is None
    taken = registry.runs.take(run, "second", gone=lambda other: False)
    assert (taken.status, taken.lease_owner, taken.attempt) == ("running", "second", 2)
    assert (taken.error, taken.finished_at, taken.cancel_requested) == (None, None, False)
    registry.runs.finish(run, status="succeeded")
    assert registry.runs.get(run).status == "succeeded"


@pytest.mark.usefixtures("run")
def test_a_run_that_nobody_leased_is_never_taken_over(registry):
    assert registry.runs.lease("worker", lease_ms=-1) is None


def test_runs_are_listed_newest_first_in_pages(registry):
    ids = [registry.runs.start(name=f"task{number}", params={}, seed=0) for number in range(5)]
    seen, cursor = [], None
    while True:
        page = registry.runs.list(limit=2, cursor=cursor)
        seen += [run.id for run in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert sorted(seen) == sorted(ids)
    assert [run.created_at for run in registry.runs.list().items] == sorted(
        (registry.runs.get(run).created_at for run in ids), reverse=True
    )
    assert [run.name for run in registry.runs.list(name="task3").items] == ["task3"]
    assert registry.runs.list(status=RunStatus.FAILED).items == ()


def test_an_unknown_run_is_named(registry):
    for look in (registry.runs.get, registry.runs.events, registry.runs.points, registry.runs.cancelled):
        with pytest.raises(NotFound, match="run-nope"):
            look("run-nope")
    with pytest.raises(NotFound, match="run-nope"):
        registry.runs.metrics("run-nope", 1, {"loss": 1.0})
