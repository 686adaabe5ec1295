"""The line that a person watches: how fast it goes now, and what is left, though the machine paused."""

import io
import re

import pytest

from umbel.cli.train.speed import Speed
from umbel.cli.train.watch import Watch
from umbel.training import Task, fit

PAUSE = 3600.0


def speed_of(seconds, *, names=("a",), tokens=100):
    """After windows of so many seconds each, in which every one of ``names`` steps."""
    speed, now = Speed(0.0), 0.0
    for each in seconds:
        now += each
        for name in names:
            speed.stepped(name, tokens, now)
    return speed


def test_a_steady_machine_is_told_as_it_is():
    speed = speed_of([0.5] * 100)
    assert (speed.of_step, speed.tokens) == (pytest.approx(0.5), pytest.approx(200))
    together = speed_of([0.5] * 100, names=("a", "b"))
    assert (together.of_step, together.tokens) == (pytest.approx(0.25), pytest.approx(400))


@pytest.mark.parametrize("paused", [0, 1, 7, 40])
def test_a_pause_counts_as_a_slow_step_at_most(paused):
    plain = [0.5] * 41
    plain[paused] += PAUSE
    speed = speed_of(plain)
    assert 0.5 <= speed.of_step <= 0.5 * (1 + 2 / 32) + 1e-9
    assert 200 / (1 + 2 / 32) - 1e-9 <= speed.tokens <= 200


def test_a_machine_that_became_slower_is_believed_after_some_steps():
    assert speed_of([0.5] * 500 + [2.0] * 32).of_step == pytest.approx(2.0)


def test_rows_of_many_lengths_count_with_their_mean():
    assert speed_of([0.4, 0.4, 0.4, 1.2] * 8).of_step == pytest.approx(0.6)


def test_looks_at_the_validation_rows_are_told_apart_also_where_several_share_them():
    speed, now = Speed(0.0), 0.0
    for window in range(40):
        now += 0.5
        for name in "ab":
            speed.stepped(name, 100, now)
        if window % 10 == 9:
            now += 8.0 + PAUSE * (window == 19)
            for _ in "ab":
                speed.looked(now)
    assert speed.of_step == pytest.approx(0.25)
    assert speed.of_look == pytest.approx(4.0)
    assert Speed(0.0).of_look is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def toy(tmp_path) -> Task:
    rows = [f'{{"text": "{"good" if i % 2 else "bad"} thing {i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    return Task(name="toy", data=str(tmp_path / "rows.jsonl"), task="classify", steps=40, eval_every=10)


def test_in_a_terminal_the_last_steps_line_stays_once(tiny, toy, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    watch = Watch(Terminal())
    fit(tiny, [toy], observer=watch)
    watch.close()
    stays = watch.out.getvalue().rpartition("\x1b[2K")[2].splitlines()  # what was not taken back
    assert stays[0].startswith("step 40/40  loss ")
    assert stays[1:] == ["toy: done after 40 steps"]


def test_a_log_has_the_last_steps_line_once_however_long_the_last_look_takes(tiny, toy):
    now = [0.0]

    class Slow(Watch):
        def stepped(self, trainee, done):
            now[0] += 11.0
            super().stepped(trainee, done)

        def validated(self, trainee, found):
            now[0] += 11.0
            super().validated(trainee, found)

    out = io.StringIO()
    fit(tiny, [toy], observer=Slow(out, clock=lambda: now[0]))
    steps = [line.split("  ")[0] for line in out.getvalue().splitlines() if line.startswith("step ")]
    assert steps == [f"step {step}/40" for step in range(1, 41)]
    assert re.search(r"validation at step 40: .*\nstep 40/40 .*\ntoy: done", out.getvalue())


def test_a_terminal_that_takes_no_line_back_gets_plain_lines(tiny, toy, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    watch = Watch(Terminal())
    fit(tiny, [toy], observer=watch)
    assert "\nstep 40/40  loss " in watch.out.getvalue()
    assert "\x1b" not in watch.out.getvalue()


def test_the_line_of_a_training_that_paused_tells_what_is_left(tiny, toy):
    """A real training by a clock that every step moves by a second and every look by five; one step pauses."""
    now = [0.0]

    class Heard(Watch):
        def stepped(self, trainee, done):
            now[0] += 1.0 + PAUSE * (trainee.step == 15)
            super().stepped(trainee, done)
            left[trainee.step] = self.line()

        def validated(self, trainee, found):
            now[0] += 5.0
            super().validated(trainee, found)

    left: dict[int, str] = {}
    fit(tiny, [toy], observer=Heard(io.StringIO(), clock=lambda: now[0]))
    told = {step: re.search(r"(\S+) tok/s  (.*) left", line).group(2) for step, line in left.items()}
    assert told[14] == "41 s"  # 26 steps and looks after 20, 30 and 40
    assert told[20] == "37 s"  # 20 steps, of which one counts as three, and three looks, of which one is due
    assert told[40] == "5.0 s"
