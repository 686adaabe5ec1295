"""``umbel train`` as a person meets it: plan, plain lines, a published version, Ctrl-C and going on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from umbel.cli.train.flags import split_words
from umbel.core.settings import Settings

WORDS = [{"prompt": f"{a}{b} ->", "completion": f" {b}{a}"} for a in "abcdefgh" for b in "stuvwxyz"]
MOODS = [{"text": f"{'good' if i % 2 else 'bad'} thing {i}", "label": "glad" if i % 2 else "sad"} for i in range(120)]


@pytest.fixture
def files(tmp_path) -> Path:
    """Two task files and their data."""
    for name, rows in (("flip", WORDS), ("joy", MOODS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "flip.toml").write_text(
        'name = "flip"\ndata = "flip.jsonl"\ntask = "generate"\nsteps = 30\nlr = 0.01\n'
    )
    (tmp_path / "joy.toml").write_text('name = "joy"\ndata = "joy.jsonl"\ntask = "classify"\nrank = 4\nsteps = 12\n')
    return tmp_path


def test_two_tasks_train_together_and_are_published_with_card_metrics_and_run(run, files, registry):
    answer = run("train", str(files / "flip.toml"), str(files / "joy.toml"), "--dropout", "0.1")
    assert answer.code == 0, answer.err
    version_metric = {"flip": "exact_match", "joy": "accuracy"}
    for name in version_metric:
        version = registry.versions.get(f"{name}:1")
        assert "champion" in version.aliases
        assert version.run is not None
        assert version.dataset is not None
        assert version.config["method"]["dropout"] == 0.1
        assert registry.runs.get(version.run).status == "succeeded"
        assert any(f"published {name}:1" in event.message for event in registry.runs.events(version.run))
        assert f"# {name}" in version.card
        assert "base_model: tiny" in version.card
        (evaluation,) = registry.evaluations.list(name=name)
        assert evaluation.n_items == len(registry.evaluations.items(evaluation.id, metric=version_metric[name])) > 0
    joy = registry.versions.get("joy:1")
    assert joy.metrics["accuracy"] > 0.9
    assert "validation_loss" in joy.metrics
    assert 'always "' in joy.card
    assert "95 % CI" in joy.card
    assert registry.versions.get("flip:1").config["method"]["rank"] == 8


def test_what_it_prints_is_the_plan_plain_lines_and_commands_that_work(run, files):
    answer = run("train", str(files / "joy.toml"))
    plan, result = answer.err, answer.out
    told = [line for line in plan.splitlines() if line.startswith("step 12/12 ")]
    assert len(told) == 1
    for part in ("joy: lora, classify head", "rows", "glad", "learning rate", "hidden 32", "needs about", "judged by"):
        assert part in plan
    assert " to train\nbeyond that  judging: held-out rows" in plan  # the time is not of judging
    assert "loss is smoothed" in plan
    assert "best, is the loss on the validation rows" in plan
    assert "validation at step 12" in plan
    assert "best loss so far" in plan
    assert "\x1b" not in plan
    assert "\r" not in plan
    assert "joy:1" in result
    assert "umbel run joy" in result
    assert "/v1/classify" in result
    assert "accuracy" in result
    assert 'always "' in result


def test_it_is_judged_as_a_server_answers(run, files, stocked, kernels, monkeypatch):
    """By the kernels, too: another rounding could answer a row otherwise, and what is told to be added takes longer."""
    from umbel.evaluation import serving_cost as measuring

    seen, measure = [], measuring.serving_cost
    monkeypatch.setattr(measuring, "serving_cost", lambda *told: seen.append(told[1]) or measure(*told))
    cache = Settings.load(stocked).cache / "kernels"
    cache.mkdir(parents=True)
    shutil.copy(kernels.path, cache)
    answer = run("train", str(files / "joy.toml"), "--dtype", "bf16")
    assert answer.code == 0, answer.err
    assert [backbone.kernels is not None for backbone in seen] == [True]
    assert "to a step of 8 rows" in answer.out


def test_data_with_one_label_are_refused_before_there_is_a_run(run, files, registry):
    (files / "joy.jsonl").write_text('{"text": "a thing", "label": "glad"}\n' * 50)
    answer = run("train", str(files / "joy.toml"))
    assert answer.code == 2
    assert "every row of" in answer.err
    assert "'glad'" in answer.err
    assert registry.runs.list().items == ()


def test_a_refused_task_beside_another_ends_its_run_as_failed(run, files, registry):
    alike = [{**row, "label": "glad"} for row in MOODS]
    (files / "joy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alike))
    assert run("train", str(files / "flip.toml"), str(files / "joy.toml"), "--quiet").code == 1
    (left,) = registry.runs.list(name="joy").items
    assert left.status == "failed"
    assert "at least two labels" in left.error
    assert registry.runs.list(name="flip").items[0].status == "succeeded"


def test_a_flag_beside_resume_is_refused_by_name(run):
    answer = run("train", "--resume", "run-1", "--epochs", "9")
    assert answer.code == 2
    assert "--epochs cannot be given with --resume" in answer.err


def test_the_command_to_compare_names_the_columns_too(run, files):
    lines = "".join(f"{row['text']},{row['label']}\n" for row in MOODS)
    (files / "tickets.csv").write_text("body,verdict\n" + lines)
    words = ("train", "--name", "triage", "--task", "classify", "--data", str(files / "tickets.csv"), "--quiet")
    columns = ("--text-column", "body", "--label-column", "verdict")
    assert run(*words, *columns, "--steps", "2").code == 0
    again = run(*words, *columns, "--steps", "3")
    assert f"compare triage:2 triage --data {files / 'tickets.csv'} {' '.join(columns)}" in again.out


def test_json_has_everything_and_quiet_says_nothing_else(run, files):
    answer = run("train", str(files / "joy.toml"), "--json", "--quiet")
    (found,) = json.loads(answer.out)
    assert answer.err == ""
    assert found["version"]["name"] == "joy"
    assert found["steps"] == 12
    assert found["result"]["metric"] == "accuracy"
    assert found["result"]["rows"] == 9


def test_packing_is_a_flag_and_gives_the_same_weights(run, files, registry):
    """In fp32 the sums' order differs, so the weights are the same to rounding only."""
    import torch

    from umbel.adapters.tensorfile import read_tensors

    for words in ((), ("--pack",)):
        answer = run("train", str(files / "joy.toml"), "--steps", "3", *words, "--json", "--quiet")
        assert answer.code == 0, answer.err
    found = []
    for version in ("joy:1", "joy:2"):
        stored = registry.fetch(registry.resolve(version).digest)
        found.append(read_tensors(stored.folder / "adapter_model.safetensors"))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, atol=2e-4, rtol=0)


def test_a_second_training_is_a_second_version_that_takes_no_traffic(run, files, registry):
    run("train", str(files / "joy.toml"))
    answer = run("train", str(files / "joy.toml"), "--seed", "7")
    assert registry.versions.get("joy").number == 1
    assert registry.versions.get("joy:2").seed == 7
    assert "umbel promote joy:2" in answer.out
    assert "umbel compare joy:2 joy" in answer.out


def test_nothing_is_published_where_nobody_wants_it(run, files, registry):
    from umbel.core.errors import NotFound

    assert run("train", str(files / "joy.toml"), "--no-publish").code == 0
    with pytest.raises(NotFound):
        registry.versions.get("joy")


def test_an_unknown_key_of_a_task_file_is_a_usage_error_with_the_nearest(run, files):
    (files / "joy.toml").write_text('name = "joy"\ndata = "joy.jsonl"\ntask = "classify"\nrnak = 4\n')
    answer = run("train", str(files / "joy.toml"))
    assert answer.code == 2
    assert "rnak" in answer.err
    assert "did you mean 'rank'?" in answer.err


def test_wrong_data_are_told_with_their_line(run, files):
    with (files / "joy.jsonl").open("a") as file:
        file.write('{"text": "no label"}\n')
    answer = run("train", str(files / "joy.toml"))
    assert answer.code == 2
    assert "line 121" in answer.err
    assert '"label"' in answer.err


def test_one_bad_task_fails_alone_and_is_told_at_the_end(run, files, registry):
    (files / "joy.jsonl").write_text("")
    answer = run("train", str(files / "flip.toml"), str(files / "joy.toml"))
    assert answer.code == 1
    assert "1 of 2 tasks failed: joy" in answer.err
    assert registry.versions.get("flip:1").number == 1


@pytest.mark.parametrize("flag", ["--from", "--parent"])
def test_a_version_to_continue_from_that_is_not_there_leaves_no_run(run, files, registry, flag):
    answer = run("train", str(files / "joy.toml"), flag, "nope:1")
    assert answer.code == 3
    assert "nope" in answer.err
    assert not registry.runs.list().items


def test_an_unknown_run_cannot_be_resumed(run):
    answer = run("train", "--resume", "run-none")
    assert answer.code == 3
    assert "run-none" in answer.err


def test_of_an_unknown_run_to_resume_the_id_is_told_that_may_be_meant(run, registry):
    registry.start(name="mood", params={}, seed=1)
    newest = registry.start(name="mood", params={}, seed=1)
    assert f"did you mean {newest} (mood)?" in run("train", "--resume", "mood").err
    assert f"did you mean {newest}?" in run("train", "--resume", newest[:-1]).err
    assert "did you mean" not in run("train", "--resume", "irony").err


@pytest.fixture
def full_disk(registry, monkeypatch):
    """``full_disk()``: publishing fails by it from now on. ``full_disk(False)``: there is room again."""
    from umbel.core.errors import Unavailable
    from umbel.registry.registry import Registry

    really = Registry.publish

    def publish(self, files, *, name, **more):
        if full and name == "joy":
            raise Unavailable("no space is left on the disk.", code="disk_full", hint="make room")
        return really(self, files, name=name, **more)

    full = []
    monkeypatch.setattr(Registry, "publish", publish)
    return lambda yes=True: full.append(1) if yes else full.clear()


def test_a_run_that_cannot_be_published_has_failed_and_goes_on_from_there(run, files, registry, full_disk):
    full_disk()
    answer = run("train", str(files / "joy.toml"))
    assert answer.code == 1, answer.err
    assert "no space is left" in answer.err
    (left,) = registry.runs.list(name="joy").items
    assert (left.status, left.error, left.lease_owner) == (
        "failed",
        "no space is left on the disk. Fix: make room",
        None,
    )
    assert f"umbel runs resume {left.id}" in run("runs", "show", left.id).out
    full_disk(False)
    assert run("runs", "resume", left.id).code == 0
    done = registry.runs.get(left.id)
    assert (done.status, done.error, done.attempt) == ("succeeded", None, 2)
    assert done.summary["steps"] == 12
    assert registry.versions.get("joy:1").run == left.id
    assert run("runs", "resume", left.id).code == 4


def test_a_task_that_cannot_be_published_keeps_no_other_from_it(run, files, registry, full_disk):
    full_disk()
    answer = run("train", str(files / "joy.toml"), str(files / "flip.toml"), "--json")
    assert answer.code == 1
    assert "1 of 2 tasks failed: joy" in answer.err
    joy, flip = json.loads(answer.out)
    assert (joy["status"], joy["error"]["code"], joy["version"]) == ("failed", "disk_full", None)
    assert flip["version"]["number"] == 1
    assert [registry.runs.list(name=name).items[0].status for name in ("joy", "flip")] == ["failed", "succeeded"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resume_goes_on_and_publishes(stocked, files, run, registry, number):
    words = ["train", str(files / "flip.toml"), "--name", "long", "--steps", "100000", "--eval-every", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", "umbel.cli", *words], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert any("validation at step 2" in line for line in child.stderr)  # it trains; what follows is read below
    child.send_signal(number)
    rest = child.communicate(timeout=60)[1]
    assert child.returncode == 130, rest
    (left,) = registry.runs.list(name="long").items
    assert f"umbel train --resume {left.id}" in rest
    state = stocked / "runs" / left.id
    saved = max((state / "checkpoints").glob("*/state.json"))
    _shorten(saved)
    assert run("train", "--resume", left.id).code == 0
    assert registry.versions.get("long:1").run == left.id
    assert registry.runs.get(left.id).status == "succeeded"
    again = run("train", "--resume", left.id)
    assert (again.code, again.out) == (4, "")
    assert again.err.startswith(f"error: {left.id} has succeeded already: it became long:1.\n")  # no plan before it


def test_a_training_whose_reader_goes_away_goes_on_to_its_end(stocked, files, registry):
    """As under ``2>&1 | head``: what nobody reads is written to nobody."""
    words = ["train", str(files / "joy.toml"), "--eval-every", "1"]
    child = subprocess.Popen([sys.executable, "-m", "umbel.cli", *words], stderr=subprocess.PIPE, text=True)
    assert "adapter" in child.stderr.readline()
    child.stderr.close()
    assert child.wait(timeout=300) == 0
    (done,) = registry.runs.list(name="joy").items
    assert (done.status, done.error) == ("succeeded", None)
    assert registry.versions.get("joy:1").run == done.id


def test_a_signal_saves_though_nobody_reads(stocked, files, registry):
    words = ["train", str(files / "flip.toml"), "--name", "long", "--steps", "100000", "--eval-every", "1"]
    child = subprocess.Popen([sys.executable, "-m", "umbel.cli", *words], stderr=subprocess.PIPE, text=True)
    assert any("validation at step 2" in line for line in child.stderr)
    child.stderr.close()
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=300) == 130
    (left,) = registry.runs.list(name="long").items
    assert (left.status, left.finished_at, left.lease_owner) == ("running", None, None)  # it waits to be resumed


def test_a_run_goes_on_as_it_was_begun(stocked, files, run, registry):
    from umbel.cli.train.begin import begin
    from umbel.cli.train.how import How, settle
    from umbel.core.errors import UsageError
    from umbel.core.settings import Settings
    from umbel.training.taskfile import read_task

    settings, nothing = Settings.load(), {"dtype": None, "checkpointing": None, "pack": False, "backbone": None}
    for how in (How(), How(dtype="bf16", checkpointing="every=2", pack=True)):
        begun = begin(registry, settings, [read_task(files / "joy.toml")], None, "tiny", how=how)
        assert settle(registry, settings, begun.runs[0], **nothing) == how
        assert begin(registry, settings, None, begun.runs[0], "tiny").tasks == begun.tasks
    recomputed = settle(registry, settings, begun.runs[0], **nothing | {"checkpointing": "full"})
    assert (recomputed.checkpointing, recomputed.pack) == ("full", True)
    with pytest.raises(UsageError, match="--dtype fp32"):
        settle(registry, settings, begun.runs[0], **nothing | {"dtype": "fp32"})


def test_a_resumed_run_ends_in_the_bytes_of_its_own_dtype(stocked, files, run, registry):
    """Begun in bf16 and stopped before its last step, it is no fp32 run afterwards."""
    flags = (str(files / "joy.toml"), "--dtype", "bf16", "--no-publish", "--save-every", "0", "--quiet")
    assert run("train", *flags).code == 0
    (begun,) = registry.runs.list(name="joy").items
    folder = stocked / "runs" / begun.id / "checkpoints"
    last = max(folder.iterdir())
    whole = (last / "tensors.safetensors").read_bytes()
    shutil.rmtree(last)
    assert run("train", "--resume", begun.id, "--no-publish", "--quiet").code == 0
    assert (last / "tensors.safetensors").read_bytes() == whole


def _shorten(state: Path) -> None:
    """So that the rest of the training is short."""
    values = json.loads(state.read_text())
    values["trainees"][0]["task"]["steps"] = values["trainees"][0]["step"] + 3
    state.write_text(json.dumps(values))


def test_flags_without_help_of_their_own_are_the_task_s_keys():
    files, flags = split_words(
        ["a.toml", "--rank", "8", "--head-depth=1", "--dora", "--targets", "q_proj,v_proj", "b.toml"]
    )
    assert files == [Path("a.toml"), Path("b.toml")]
    assert flags == {"rank": "8", "head_depth": "1", "dora": "true", "targets": "q_proj,v_proj"}


def test_help_knows_no_torch():
    code = "import sys; from umbel.cli import main; main.main(['train', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
