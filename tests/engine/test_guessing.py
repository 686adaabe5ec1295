"""Guesses change nothing but the number of steps: every answer is, to the bit, that of an engine without them."""

import pytest
from tests.engine.conftest import Lab

from umbel.engine.guessing import TOGETHER, Guesser

LOOP = "one two three, one two three, one two three, one two"


@pytest.fixture(autouse=True)
def skip_where_onednn_is_better(kernels):
    if not kernels.multiplies:
        pytest.skip("this processor's linears are oneDNN's")


@pytest.fixture
def kernel_lab(by_kernels):
    made = Lab(by_kernels)
    yield made
    made.close()


def steps(lab, requests, **options):
    engine = lab.engine(**options)
    answers = lab.run(engine, requests)
    return answers, engine.stats()


def equal(lab, requests, *, guesses=5, **options):
    """Runs both; the figures of the one that guesses, and the steps of the other."""
    found, stats = steps(lab, requests, guesses=guesses, **options)
    expected, plain = steps(lab, requests, **options)
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        assert one.text == other.text
        assert one.finished.reason == other.finished.reason
        assert one.finished.usage == other.finished.usage
        assert [token.text for token in one.tokens] == [token.text for token in other.tokens]
        assert [token.logprob for token in one.tokens] == [token.logprob for token in other.tokens]
        assert [token.top for token in one.tokens] == [token.top for token in other.tokens]
    assert plain.guessed_tokens == 0
    assert stats.generated_tokens == plain.generated_tokens
    return stats, plain.steps


def test_a_row_that_repeats_itself_takes_fewer_steps(kernel_lab):
    stats, plain = equal(kernel_lab, [kernel_lab.ask(LOOP, max_tokens=60)])
    assert stats.guessed_right > 10
    assert stats.steps <= plain - stats.guessed_right


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 9])
def test_rows_of_any_number_say_what_they_say_without(rows, kernel_lab):
    asked = [kernel_lab.ask(LOOP[i:], max_tokens=20 + 12 * i) for i in range(rows)]
    stats, _ = equal(kernel_lab, asked)
    assert stats.guessed_tokens > 0


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_draws_are_those_of_their_seed_and_place(temperature, seed, kernel_lab):
    asked = [kernel_lab.ask(LOOP, max_tokens=40, temperature=temperature, seed=seed, top_p=0.9, top_k=12)]
    equal(kernel_lab, asked)


def test_everything_that_generates_says_what_it_says_without(kernel_lab):
    zoo = kernel_lab.zoo()
    stats, _ = equal(kernel_lab, [kernel_lab.ask(LOOP, worn, max_tokens=25) for worn in zoo], max_rows=2)
    assert stats.guessed_right > 0


@pytest.mark.parametrize("max_tokens", range(1, 9))
def test_no_row_says_more_than_it_was_asked_for(max_tokens, kernel_lab):
    equal(kernel_lab, [kernel_lab.ask(LOOP, max_tokens=max_tokens)])


def test_a_row_ends_at_its_stop_string_and_its_end_token_in_the_midst_of_right_guesses(kernel_lab):
    answer = steps(kernel_lab, [kernel_lab.ask(LOOP, max_tokens=60)])[0][0]
    late = answer.ids[30:]
    equal(kernel_lab, [kernel_lab.ask(LOOP, max_tokens=60, stop_token_ids=(token,)) for token in set(late)])
    whole = answer.text
    equal(kernel_lab, [kernel_lab.ask(LOOP, max_tokens=60, stop=(whole[i : i + 2],)) for i in range(20, 40, 3)])


def test_tokens_that_must_not_come_yet_are_banned_at_every_place(kernel_lab):
    answer = steps(kernel_lab, [kernel_lab.ask(LOOP, max_tokens=40)])[0][0]
    ends = tuple(set(answer.ids))[:3]
    for least in (1, 2, 7, 20):
        asked = kernel_lab.ask(LOOP, max_tokens=40, min_tokens=least, stop_token_ids=ends)
        equal(kernel_lab, [asked])


def test_rows_that_make_room_and_come_back_say_the_same(kernel_lab):
    per_token = kernel_lab.backbone.kv_bytes_per_token
    asked = [kernel_lab.ask(LOOP, max_tokens=90) for _ in range(3)]
    stats, _ = equal(kernel_lab, asked, kv_bytes=310 * per_token)
    assert stats.preemptions > 0
    assert stats.guessed_right > 0


def test_what_was_guessed_wrongly_reaches_nobody(kernel_lab):
    """Of a row that leaves, the slot is another's: its own places alone are read."""
    engine = kernel_lab.engine(guesses=5, max_rows=2)
    asked = [kernel_lab.ask(LOOP[i:] + "xyz" * (i % 3), max_tokens=9 + i) for i in range(12)]
    handles = [engine.submit(request) for request in asked]
    while engine.step():
        kernel_lab.poison(engine)
    alone = [kernel_lab.run(kernel_lab.engine(), [request])[0] for request in asked]
    assert [handle.result().ids for handle in handles] == [answer.ids for answer in alone]


@pytest.mark.parametrize("max_tokens", [9, 40])
def test_no_row_writes_beyond_the_places_that_it_was_promised(max_tokens, kernel_lab):
    """Not where its slot ends, either: there the next head's keys begin."""
    engine = kernel_lab.engine(guesses=7, max_length=len(LOOP) + max_tokens)
    plan, left = engine.scheduler.plan, []

    def watched():
        planned = plan()
        left.extend(row.held - row.used - ahead for row, ahead in zip(planned.decode, planned.ahead, strict=True))
        return planned

    engine.scheduler.plan = watched
    kernel_lab.run(engine, [kernel_lab.ask(LOOP, max_tokens=max_tokens)])
    assert engine.stats().guessed_right > 0
    assert min(left) >= 1


def test_no_step_has_more_tokens_than_a_tile(kernel_lab):
    engine = kernel_lab.engine(guesses=7)
    plans, plan = [], engine.scheduler.plan
    engine.scheduler.plan = lambda: plans.append(plan()) or plans[-1]
    kernel_lab.run(engine, [kernel_lab.ask(LOOP, max_tokens=40 + 15 * i) for i in range(3)])
    guessing = [one for one in plans if any(one.ahead)]
    assert guessing
    assert max(one.tokens for one in guessing) <= TOGETHER
    assert not any(one.chunks for one in guessing)
    assert {one.ahead.count(0) for one in guessing} == {1, 2}


def test_a_row_on_whose_answer_torch_acts_does_not_guess(kernel_lab):
    """Its products may round otherwise beside more rows, on some processor."""
    everywhere = kernel_lab.adapter("lora", 3, rank=8, targets=("q_proj", "lm_head"))
    stats = steps(kernel_lab, [kernel_lab.ask(LOOP, everywhere, max_tokens=40)], guesses=5)[1]
    assert stats.guessed_tokens == 0


def test_without_kernels_nobody_guesses(fp32):
    made = Lab(fp32)
    stats = steps(made, [made.ask(LOOP, max_tokens=30)], guesses=5)[1]
    made.close()
    assert stats.guessed_tokens == 0


def test_a_guess_is_what_followed_last_time():
    guesser = Guesser()
    assert guesser.guess([1, 2, 3, 4, 9, 1, 2, 3], 3) == [4, 9, 1]
    assert guesser.guess([1, 2, 3, 4, 9, 1, 2, 3, 5, 2, 3], 2) == [5, 2]


def test_three_tokens_that_are_the_same_say_more_than_two():
    assert Guesser().guess([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1) == [3]


def test_a_loop_goes_round():
    assert Guesser().guess([5, 1, 2, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]


def test_nothing_is_guessed_where_nothing_like_it_stood():
    assert Guesser().guess([1, 2, 3, 4, 5], 4) == []
    assert Guesser().guess([], 4) == []
    assert Guesser().guess([1], 4) == []


def test_wrong_guesses_pause_twice_as_long_each_time_and_a_right_one_ends_that():
    guesser, tokens = Guesser(), [1, 2, 1, 2, 1, 2]

    def pause():
        count = 0
        while not guesser.guess(tokens, 2):
            count += 1
        return count

    for expected in (1, 2, 4, 8, 16, 16):
        guesser.told(0)
        assert pause() == expected
    guesser.told(1)
    assert pause() == 0
    guesser.told(0)
    assert pause() == 1
