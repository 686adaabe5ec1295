"""``umbel experiments``, on the home's registry and through a server."""

import json
import re
import threading

import numpy as np
import pytest
from sqlalchemy import insert

from umbel.cli.experiments import showing
from umbel.core.clock import now_ms
from umbel.experiments.live import split_of
from umbel.registry.experiments import unit_hash
from umbel.registry.models import ExposureRow, OutcomeRow
from umbel.server.app import create_app
from umbel.server.assembly import running
from umbel.server.runner import Runner, bind, url_of
from umbel.server.service import Capacity, ServerConfig

CREATE = ("experiments", "create", "irony", "--control", "mood:1", "--arm", "mood:2", "--metric", "thumbs")


@pytest.fixture
def irony(run):
    assert run(*CREATE).code == 0
    return "irony"


@pytest.fixture
def served(registry, tiny, monkeypatch):
    """The URL of a server on this test's home, with a key that may promote in the environment."""
    listening, ready = bind("127.0.0.1", 0), threading.Event()
    monkeypatch.setenv("UMBEL_API_KEY", registry.keys.create("boss", ["promote", "read"])[1])
    with running(tiny, registry, Capacity(4, 4_000_000, 2_000_000), ServerConfig()) as parts:
        app = create_app(parts.service)
        runner = Runner(app, parts.service, parts.thread, grace=1.0, on_ready=ready.set)
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        assert ready.wait(20)
        yield url_of(listening)
        runner.stop()
        thread.join(20)
    listening.close()


def come(registry, rates, count=1200, lose=()):
    """Units of `irony`, each with a thumb up as likely as its arm's rate; half of those of ``lose`` are lost."""
    experiment, rng = registry.experiments.get("irony"), np.random.default_rng(0)
    split, exposures, outcomes = split_of(experiment), [], []
    for index in range(count):
        arm = split.arm(f"u{index}")
        if arm in lose and rng.random() < 0.5:
            continue
        known = {"experiment_id": experiment.id, "unit_hash": unit_hash(experiment.salt, f"u{index}"), "at": now_ms()}
        exposures.append({**known, "arm": arm})
        value = float(rng.random() < rates[arm])
        outcomes.append({**known, "metric": "thumbs", "value": value, "idempotency_key": f"k{index}"})
    with registry.database.write() as session:
        session.execute(insert(ExposureRow), exposures)
        session.execute(insert(OutcomeRow), outcomes)


def test_create_tells_the_arms_and_what_to_do_next(run, registry):
    answer = run(*CREATE)
    assert answer.code == 0
    assert answer.out.splitlines()[0] == "irony runs: control mood:1 (0.5), candidate mood:2 (0.5)"
    assert "X-Experiment-Unit" in answer.out
    assert registry.experiments.get("irony").arms[1].version.number == 2


def test_create_takes_names_weights_directions_and_a_salt(run, registry):
    words = ("--arm", "terse=mood:2", "--arm", "warm=mood@canary", "--weights", "0.6,0.2,0.2", "--share", "0.5")
    metrics = ("--metric", "complaints:lower", "--metric", "stars")
    answer = run("experiments", "create", "irony", "--control", "mood", *words, *metrics, "--salt", "pepper", "--json")
    made = json.loads(answer.out)
    assert [(arm["name"], arm["version"], arm["weight"]) for arm in made["arms"]] == [
        ("control", "mood:1", 0.6),
        ("terse", "mood:2", 0.2),
        ("warm", "mood:3", 0.2),
    ]
    assert [(one["name"], one["higher_is_better"]) for one in made["metrics"][:2]] == [
        ("complaints", False),
        ("stars", True),
    ]
    assert registry.experiments.get("irony").salt == "pepper"


def test_lower_is_better_is_of_the_first_metric(run):
    made = json.loads(run(*CREATE, "--lower-is-better", "--json").out)
    assert not made["metrics"][0]["higher_is_better"]


def test_an_aa_test_needs_no_arm(run):
    answer = run("experiments", "create", "check", "--control", "mood:1", "--aa", "--metric", "thumbs")
    assert answer.out.startswith("check runs: control mood:1 (0.5), candidate mood:1 (0.5)")
    assert "A/A" in run("experiments", "status", "check").out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--arm", "mood:9"], 3, "no mood:9"),
        (["--arm", "nope:1"], 3, "no adapter 'nope'"),
        ([], 2, "no arm beside the control"),
        (["--arm", "mood:1"], 2, "same version"),
        (["--arm", "mood:2", "--weights", "0.5,0.6"], 2, "sum to 1.1, not to 1"),
        (["--arm", "mood:2", "--weights", "1"], 2, "2 arms but 1 weights"),
        (["--arm", "mood:2", "--weights", "half,half"], 2, "'half' is no weight"),
        (["--arm", "mood:2", "--weights", "0,1"], 2, "greater than 0"),
        (["--arm", "mood:2", "--share", "1.5"], 2, "'--share': it should be less than or equal to 1\n"),
        (["--arm", "mood:2", "--alpha", "0.9"], 2, "umbel experiments create --help"),
        (["--arm", "mood:2", "--horizon", "7"], 2, "it should be greater than or equal to 100"),
        (
            ["--arm", "mood:2", "--salt", ""],
            2,
            "error: salt: String should have at least 1",
        ),
        (["--arm", "mood:2", "--metric", "stars:up"], 2, "'stars:up' is no metric"),
        (["--arm", "mood:2", "--metric", "thumbs"], 2, "'thumbs' twice"),
        (["--arm", "control=mood:2"], 2, "'control' twice"),
        (["--arm", "mood:2", "--aa"], 2, "compares a version with itself"),
    ],
)
def test_what_makes_no_experiment_is_refused(run, words, code, told):
    answer = run("experiments", "create", "irony", "--control", "mood:1", "--metric", "thumbs", *words)
    assert (answer.code, answer.out) == (code, ""), answer.err
    assert told in answer.err


def test_the_same_bytes_under_two_names_are_told_as_that(run, registry, published, made):
    digest = published(registry, "copy", made(1)).digest
    assert digest == registry.versions.get("mood:1").digest
    words = ("--control", "mood:1", "--arm", "copy:1", "--metric", "thumbs")
    answer = run("experiments", "create", "irony", *words)
    assert answer.code == 2
    assert f"control (mood:1) and candidate (copy:1) hold the same bytes: both are {digest[:19]}" in answer.err
    assert run("experiments", "create", "irony", *words, "--aa").code == 0


def test_a_value_that_the_wire_refuses_is_told_without_a_class_and_with_a_fix(run):
    err = run(*CREATE, "--salt", "").err
    assert err.startswith("error: salt: ")
    assert err.endswith("fix: umbel experiments create --help\n")


@pytest.mark.usefixtures("irony")
@pytest.mark.parametrize("name", ["irony", "mood", "tiny"])
def test_a_name_that_is_taken_is_a_conflict(run, name):
    answer = run("experiments", "create", name, *CREATE[3:])
    assert answer.code == 4
    assert name in answer.err


@pytest.mark.parametrize(
    "words",
    [["status", "nope"], ["stop", "nope"], ["decide", "nope"], ["ramp", "nope", "--share", "1"]],
)
def test_an_unknown_experiment_is_not_found(run, words):
    answer = run("experiments", *words)
    assert answer.code == 3
    assert "no experiment 'nope'" in answer.err


def test_status_shows_units_intervals_the_split_and_one_sentence(run, registry, irony):
    come(registry, {"control": 0.3, "candidate": 0.6})
    out = run("experiments", "status", irony).out
    assert "split       sound (e = " in out
    rows = {tuple(line.split("\t")[:2]): line.split("\t")[2:] for line in out.splitlines() if "\t" in line}
    assert rows["thumbs", "control"][2:] == ["", "", ""]
    assert rows["thumbs", "candidate"][4] == "better"
    assert rows["thumbs", "candidate"][3].startswith("+0.")
    assert out.splitlines()[-1].endswith("It is safe to stop: promote candidate.")


def test_status_as_json_is_what_the_server_says(run, served, irony, registry):
    come(registry, {"control": 0.3, "candidate": 0.6})
    here, there = (run("experiments", "status", irony, "--json", *url) for url in ((), ("--url", served)))
    assert json.loads(here.out) == json.loads(there.out)
    assert json.loads(here.out)["winner"] == "candidate"


def test_a_broken_split_withholds_the_table_and_refuses_a_decision_even_by_force(run, registry, irony):
    come(registry, {"control": 0.3, "candidate": 0.6}, lose=("candidate",))
    out = run("experiments", "status", irony).out
    assert "BROKEN" in out
    assert showing.COLUMNS[0] not in out
    for force in ((), ("--force", "--winner", "candidate", "--reason", "x")):
        answer = run("experiments", "decide", irony, *force)
        assert answer.code == 5
        assert "withheld" in answer.err
    assert registry.resolve("mood").number == 1


def test_watch_looks_until_the_experiment_ends(run, registry, irony, monkeypatch):
    slept = []

    def stop_at_the_second_look(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            registry.experiments.stop(irony)

    monkeypatch.setattr(showing.time, "sleep", stop_at_the_second_look)
    out = run("experiments", "status", irony, "--watch", "7").out
    assert slept == [7, 7]
    assert out.count("too early to compare") == 3


def test_list_shows_all_and_status_without_a_name_those_that_run(run, irony):
    run("experiments", "create", "older", *CREATE[3:])
    run("experiments", "stop", "older")
    assert {row[0]: row[1] for row in run("experiments", "list").rows} == {"older": "stopped", irony: "running"}
    assert [row[0] for row in run("experiments", "status").rows] == [irony]
    assert [row[0] for row in run("experiments", "list", "--status", "stopped").rows] == ["older"]
    assert run("experiments", "list", "--status", "paused").code == 2


def test_an_empty_list_tells_how_to_begin(run):
    assert "umbel experiments create" in run("experiments", "list").err


def test_a_ramp_is_shown(run, irony):
    assert run("experiments", "ramp", irony, "--share", "0.25").out == "irony is open to 0.25 of all units\n"
    assert run("experiments", "list").rows[0][1] == "running for 0.25 of all units"
    assert run("experiments", "ramp", irony, "--share", "2").code == 2


def test_without_a_result_nothing_is_decided_and_the_exit_code_says_so(run, registry, irony):
    answer = run("experiments", "decide", irony)
    assert answer.code == 5
    assert "too early to compare candidate with control by thumbs: 0 outcomes of candidate, 0 of control" in answer.err
    assert registry.resolve("mood").number == 1
    assert registry.experiments.get(irony).status == "running"


def test_decide_promotes_the_winner_with_the_experiment_as_evidence(run, registry, irony):
    come(registry, {"control": 0.3, "candidate": 0.6})
    out = run("experiments", "decide", irony).out
    assert out.splitlines() == [
        "irony is decided: candidate (mood:2); it answers with that from now on",
        "  mood now answers with mood:2 (was mood:1; undo: umbel rollback mood)",
    ]
    last = run("alias", "history", "mood", "champion").rows[-1]
    assert last[2:5] == ["set", "1", "2"]
    assert last[7] == registry.experiments.get(irony).id
    told = " ".join(run("experiments", "status", last[7]).out.split())
    assert "It was decided for candidate, by its outcomes: candidate is better than control by thumbs" in told
    assert run("experiments", "list").rows[0][1] == "decided: candidate"
    assert run("experiments", "decide", irony).code == 4
    assert run("rollback", "mood").code == 0


def test_a_decision_need_not_promote(run, registry, irony):
    come(registry, {"control": 0.3, "candidate": 0.6})
    out = run("experiments", "decide", irony, "--no-promote").out
    assert f"umbel promote mood:2 --evidence {registry.experiments.get(irony).id}" in out
    assert registry.resolve("mood").number == 1


def test_force_needs_a_winner_and_a_reason_and_then_decides(run, registry, irony):
    for missing in (("--winner", "candidate"), ("--reason", "x"), ()):
        assert run("experiments", "decide", irony, "--force", *missing).code == 2
    answer = run("experiments", "decide", irony, "--force", "--winner", "candidate", "--reason", "half the cost")
    assert answer.code == 0
    assert registry.aliases.history("mood", "champion")[-1].reason == "half the cost"
    out = run("experiments", "status", irony).out
    assert out.splitlines()[-1] == "It was decided for candidate, by force: half the cost"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--winner", "candidat"), 3, "did you mean candidate? its arms: control, candidate"),
        (("--winner", "B", "--force", "--reason", "x"), 3, "its arms: control, candidate"),
        (("--force", "--reason", "x"), 2, "--force --winner ARM --reason 'why', where ARM is control or candidate"),
        ((), 5, "--force --winner ARM --reason 'why', where ARM is control or candidate"),
    ],
)
def test_a_winner_that_is_wrong_or_missing_is_answered_with_the_arms(run, irony, words, code, told):
    answer = run("experiments", "decide", irony, *words)
    assert (answer.code, answer.out) == (code, "")
    assert told in answer.err


def test_half_a_unit_that_is_expected_is_told_as_half(run, registry, irony):
    come(registry, {"control": 0.3, "candidate": 0.6}, count=5)
    assert run("experiments", "status", irony).out.count("(expected 2.5)") == 2


@pytest.mark.usefixtures("irony")
@pytest.mark.parametrize("words", [["status", "irny"], ["decide", "irny"], ["stop", "irny"]])
def test_an_experiment_that_is_nearly_named_is_proposed(run, words):
    assert "did you mean irony?" in run("experiments", *words).err


def test_a_champion_that_was_not_tested_is_a_conflict(run, registry, irony):
    come(registry, {"control": 0.3, "candidate": 0.6})
    registry.aliases.promote("mood:3")
    answer = run("experiments", "decide", irony)
    assert answer.code == 4
    assert "mood:3" in answer.err


def test_a_stop_says_what_answers_now(run, irony):
    assert run("experiments", "stop", irony, "--reason", "slow").out == "irony is stopped; it answers with mood:1\n"
    assert run("experiments", "stop", irony).code == 4


def test_all_of_it_works_through_a_server_too(run, registry, served):
    url = ("--url", served)
    assert run(*CREATE, *url).code == 0
    assert run(*CREATE, *url).code == 4
    assert run("experiments", "ramp", "irony", "--share", "1", *url).code == 0
    assert run("experiments", "list", *url).rows[0][0] == "irony"
    assert run("experiments", "decide", "irony", *url).code == 5
    assert run("experiments", "status", "nope", *url).code == 3
    come(registry, {"control": 0.3, "candidate": 0.6})
    assert "mood now answers with mood:2" in run("experiments", "decide", "irony", *url).out
    forced = run("experiments", "decide", "irony", "--force", "--winner", "control", "--reason", "x", *url)
    assert (forced.code, "scope admin" in forced.err) == (1, True)


def test_an_experiment_can_be_asked_by_its_name(run, irony):
    answer = run("run", "irony", "what a day")
    assert answer.code == 0, answer.err
    assert answer.out.split()[0] in ("negative", "neutral", "positive")


def test_at_80_columns_an_arm_is_one_line_and_its_verdict_goes_under_it(run, registry, irony, monkeypatch):
    come(registry, {"control": 0.5, "candidate": 0.7})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    lines = re.sub(r"\x1b\[\d*m", "", run("experiments", "status", "irony").out).splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.startswith("thumbs ")]
    assert [len(row) for row in rows] == [4, 8]  # metric, arm, outcomes, mean; difference, low to high
    assert "  verdict better" in lines
