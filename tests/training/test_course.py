"""The course of a training: the plan it keeps, the best it keeps, what it learns, what it tells."""

from dataclasses import replace

import pytest

from umbel.core.errors import ConfigError
from umbel.training import fit
from umbel.training.observer import Observer
from umbel.training.trainee import Status


class Ears(Observer):
    def __init__(self) -> None:
        self.plan, self.steps, self.validations, self.ends = None, [], [], []

    def planned(self, plan):
        self.plan = plan

    def stepped(self, trainee, done):
        self.steps.append((trainee.task.name, done))

    def validated(self, trainee, found):
        self.validations.append((trainee.task.name, found))

    def finished(self, trainee):
        self.ends.append(trainee.task.name)


def test_the_plan_says_what_is_then_measured(tasks, train):
    ears = Ears()
    found = train(*tasks.values(), observer=ears)
    for plan, trained in zip(ears.plan.tasks, found, strict=True):
        steps = [done for name, done in ears.steps if name == plan.name]
        assert len(steps) == plan.steps == trained.steps
        assert sum(done.tokens for done in steps) == plan.total_tokens == trained.tokens
        assert plan.train_rows == len(trained.prepared.train.examples)
        assert plan.parameters == sum(trained.adapter.tensors[name].numel() for name in trained.adapter.tensors)
        assert steps[0].lr <= plan.lr == 0.02
    mood = next(plan for plan in ears.plan.tasks if plan.name == "mood")
    assert sum(mood.balance.values()) == mood.train_rows
    assert set(mood.balance) == {"glad", "sad"}
    assert ears.plan.memory > 0
    assert ears.plan.seconds > 0
    assert sorted(ears.ends) == sorted(tasks)


def test_truncated_and_left_out_rows_are_in_the_plan(tasks, train):
    ears = Ears()
    train(replace(tasks["mood"], max_length=9), replace(tasks["speech"], max_length=5), observer=ears)
    mood, speech = ears.plan.tasks
    assert 0 < mood.truncated <= mood.train_rows
    assert mood.longest == 9
    assert speech.left_out == 0
    with pytest.raises(ConfigError):
        replace(tasks["speech"], max_length=0)


def test_the_best_on_validation_is_kept_and_patience_ends_it(task, backbone, settings):
    import random

    from umbel.adapters.wear import fuse_all
    from umbel.training.forward import run_pass
    from umbel.training.passes import Packing, Seat, pack

    rng = random.Random(0)  # labels without rhyme or reason: validation soon gets worse
    rows = [{"text": f"text {i}", "label": rng.choice("ab")} for i in range(60)]
    noise = task(rows, name="noise", task="classify", steps=300, eval_every=5, patience=3, rank=8, lr=0.01)
    found = fit(backbone, [noise], settings=settings)[0]
    losses = [each.loss for each in found.history]
    assert found.status is Status.STOPPED
    assert found.steps < 300
    assert losses.index(min(losses)) == len(losses) - 4
    examples = found.prepared.validation.examples
    worn, total = fuse_all([found.adapter]), 0.0
    for part in pack([Seat(0, example) for example in examples], Packing()):
        total += float(run_pass(backbone, [found.adapter], worn, part)[0].loss)
    assert total / len(examples) == pytest.approx(min(losses), rel=1e-5)


def test_no_more_rows_are_looked_at_than_were_trained_on_since_the_last_look(task, backbone, settings):
    rows = [{"text": f"{'good' if i % 2 else 'bad'} thing {i}", "label": "ab"[i % 2]} for i in range(120)]
    given = {"name": "toy", "task": "classify", "steps": 12, "rank": 4, "validation_fraction": 0.3}

    def looks(**more) -> list[int]:
        found = fit(backbone, [task(rows, **given, **more)], settings=settings)[0]
        assert found.plan.validation_rows == more.get("validation_limit", 35)
        return [each.step for each in found.history]

    assert looks(batch_size=4) == [9, 12]  # after 36 rows and at the end, where 35 are looked at
    assert looks(batch_size=4, validation_limit=8) == [2, 4, 6, 8, 10, 12]
    assert looks(batch_size=4, eval_every=3) == [3, 6, 9, 12]


def test_a_tiny_adapter_beats_chance_by_far(task, backbone, settings):
    rows = [{"text": f"{'good' if i % 2 else 'bad'} thing {i}", "label": "ab"[i % 2]} for i in range(120)]
    found = fit(backbone, [task(rows, name="toy", task="classify", steps=20, rank=4)], settings=settings)[0]
    assert found.best.accuracy > 0.9
    assert found.best.loss < 0.3


def test_a_tiny_adapter_learns_to_generate(task, backbone, settings):
    rows = [{"prompt": f"{a}{b} ->", "completion": f" {b}"} for a in "abcdefgh" for b in "uvwxyz"]
    found = fit(backbone, [task(rows, name="toy", task="generate", steps=120, lr=0.02)], settings=settings)[0]
    assert found.best.accuracy > 0.8


def test_a_run_log_hears_everything_and_each_task_has_its_own_run(tasks, train):
    class Log:
        def __init__(self):
            self.runs, self.points, self.ends, self.events = [], [], {}, []

        def start(self, *, name, params, seed):
            assert params["task"]
            assert params["method"]
            self.runs.append(name)
            return f"run-{name}"

        def metrics(self, run, step, values):
            self.points.append((run, step, values))

        def event(self, run, message, *, level="info", data=None):
            self.events.append((run, level, message))

        def cancelled(self, run):
            return False

        def finish(self, run, *, status, error=None, summary=None):
            self.ends[run] = (status, error, summary)

    log = Log()
    bad = replace(tasks["topic"], name="bad", data="/nowhere.jsonl")
    found = train(tasks["speech"], tasks["mood"], bad, run_log=log)
    assert log.runs == ["speech", "mood", "bad"]
    assert [each.run for each in found[:2]] == ["run-speech", "run-mood"]
    assert log.ends["run-speech"][0] == "succeeded"
    assert log.ends["run-bad"][0] == "failed"
    assert "nowhere" in log.ends["run-bad"][1]
    assert [step for run, step, values in log.points if run == "run-mood" and "loss" in values] == [1, 2, 3, 4]
    assert log.ends["run-mood"][2]["validation_loss"] == found[1].best.loss


def test_a_cancelled_run_stops_and_says_so(tasks, train, tmp_path):
    from umbel.core.errors import Interrupted

    class Log:
        def __init__(self):
            self.asked, self.ends = 0, {}

        def start(self, **_):
            return "run-1"

        def metrics(self, *_): ...

        def event(self, *_, **__): ...

        def cancelled(self, run):
            self.asked += 1
            return self.asked > 2

        def finish(self, run, *, status, error=None, summary=None):
            self.ends[run] = status

    log = Log()
    with pytest.raises(Interrupted, match="cancelled"):
        train(tasks["speech"], run_log=log, folder=tmp_path / "run")
    assert log.ends == {"run-1": "cancelled"}
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_two_tasks_of_one_name_and_no_task_are_refused(tasks, train):
    for given in ([tasks["mood"], replace(tasks["speech"], name="mood")], []):
        with pytest.raises(ConfigError):
            train(*given)


def test_without_validation_rows_the_last_weights_are_kept(tasks, train):
    found = train(replace(tasks["mood"], validation_fraction=0.0))[0]
    assert found.history == ()
    assert found.best is None
    assert found.adapter is not None


def test_a_backbone_that_was_packed_for_serving_is_refused(tasks, tiny, settings):
    from umbel.backbone.linears import can_pack
    from umbel.backbone.loading import load_backbone

    packed = load_backbone(tiny, packed=True)
    if not can_pack(packed.dtype, packed.device):
        pytest.skip("this processor packs no weights")
    with pytest.raises(ConfigError) as caught:
        fit(packed, [tasks["mood"]], settings=settings)
    assert caught.value.code == "packed_backbone"
