"""Drawing: distributions, filters, seeds, ties and log-probabilities."""

import pytest
import torch

from umbel.engine.sampler import Choice, draw, score, uniform

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]])


def frequencies(choice_of, logits=LOGITS, draws=4000):
    choices = [choice_of(place) for place in range(draws)]
    tokens = torch.tensor([drawn.token for drawn in draw(logits.expand(draws, -1), choices)])
    return torch.bincount(tokens, minlength=logits.shape[1]) / draws


def test_greedy_takes_the_largest_and_of_equals_the_first():
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 5.0, 1.0]])
    assert [drawn.token for drawn in draw(logits, [Choice(), Choice()])] == [1, 0]


@pytest.mark.parametrize("vocabulary", [3 * 64, 5 * 1024, 101])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_greedy_is_the_same_in_vocabularies_of_any_size(vocabulary, dtype):
    logits = torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(0)).to(dtype)
    largest = logits.max(-1).values
    for row, places in enumerate([(0,), (vocabulary - 1,), (7, 63, vocabulary - 2), (64, vocabulary - 1), (63, 64)]):
        logits[row, list(places)] = largest[row] + 1
    wanted = [row.index(max(row)) for row in logits.tolist()]
    assert [drawn.token for drawn in draw(logits, [Choice()] * 6)] == wanted
    logits[2, vocabulary - 1] = float("nan")
    wanted[2] = None
    assert [drawn.token for drawn in draw(logits, [Choice()] * 6)] == wanted


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_distribution(temperature):
    found = frequencies(lambda place: Choice(temperature=temperature, seed=1, place=place))
    torch.testing.assert_close(found, (LOGITS[0] / temperature).softmax(0), rtol=0, atol=0.03)


def test_top_k_keeps_k_and_renormalises():
    found = frequencies(lambda place: Choice(temperature=1.0, top_k=2, seed=2, place=place))
    torch.testing.assert_close(found, torch.tensor([0.731, 0.269, 0, 0, 0]), rtol=0, atol=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, 1), (0.7, 2), (0.9, 3), (0.999, 5)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    found = frequencies(lambda place: Choice(temperature=1.0, top_p=top_p, seed=3, place=place))
    assert int((found > 0).sum()) == kept


def test_top_p_counts_what_top_k_left():
    # of the two likeliest the first has 0.731, so 0.7 needs no more
    found = frequencies(lambda place: Choice(temperature=1.0, top_k=2, top_p=0.7, seed=4, place=place))
    assert found[0] == 1.0


def test_top_p_beyond_the_nearest_tokens_sorts_everything(monkeypatch):
    logits = torch.randn(1, 200, generator=torch.Generator().manual_seed(0)) * 0.1

    def choice(place):
        return Choice(temperature=1.0, top_p=0.9, seed=5, place=place)

    near = [drawn.token for drawn in draw(logits.expand(300, -1), [choice(i) for i in range(300)])]
    monkeypatch.setattr("umbel.engine.sampler._NEAR", 8)
    assert [drawn.token for drawn in draw(logits.expand(300, -1), [choice(i) for i in range(300)])] == near
    assert len(set(near)) > 8


def test_a_draw_depends_on_seed_and_place_alone():
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(1))
    mine = Choice(temperature=1.5, top_p=0.95, top_k=100, seed=7, place=3)
    others = [
        Choice(),
        Choice(temperature=0.7, seed=1, place=9),
        Choice(temperature=3.0, top_k=290, seed=2),
        Choice(temperature=1.0, top_p=0.9999, logprobs=4),
        Choice(banned=(0, 1)),
    ]
    alone = draw(logits[:1], [mine])[0]
    assert draw(logits, [mine, *others])[0] == alone
    assert draw(logits.flip(0), [*others, mine])[5] == alone


def test_other_seeds_and_places_draw_other_numbers():
    numbers = {uniform(seed, place) for seed in range(50) for place in range(50)}
    assert len(numbers) == 2500
    assert min(numbers) < 0.01
    assert max(numbers) > 0.99


def test_a_huge_draw_never_leaves_the_kept_tokens(monkeypatch):
    monkeypatch.setattr("umbel.engine.sampler.uniform", lambda seed, place: 1 - 2**-53)
    logits = torch.full((1, 64), -50.0)
    logits[0, 3] = 0.0
    assert draw(logits, [Choice(temperature=1.0, top_k=1)])[0].token == 3


def test_banned_tokens_do_not_come_but_keep_their_logprob():
    drawn = draw(LOGITS, [Choice(banned=(0,), logprobs=2)])[0]
    assert drawn.token == 1
    assert drawn.top[0].token == 0
    assert drawn.logprob == pytest.approx(float(LOGITS[0].log_softmax(0)[1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_logprobs_are_the_models_own_whatever_the_temperature(dtype):
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(2)).to(dtype)
    choices = [Choice(temperature=t, seed=3, logprobs=5, top_k=3) for t in (0.0, 0.5, 1.0, 4.0)]
    expected = logits.to(torch.promote_types(dtype, torch.float32)).log_softmax(-1)
    for row, drawn in zip(expected, draw(logits, choices), strict=True):
        assert drawn.logprob == pytest.approx(float(row[drawn.token]), abs=1e-6)
        assert [x.logprob for x in drawn.top] == pytest.approx(row.topk(5).values.tolist(), abs=1e-6)


def test_a_greedy_token_is_first_of_its_top_logprobs_even_in_a_tie():
    logits = torch.zeros(1, 300, dtype=torch.bfloat16)
    for count in (1, 3, 300):
        drawn = draw(logits, [Choice(logprobs=count)])[0]
        assert len(drawn.top) == count
        assert (drawn.top[0].token, drawn.top[0].logprob) == (drawn.token, drawn.logprob)


def test_the_chosen_tokens_logprob_needs_no_top():
    scored = score(LOGITS, [4], 0)[0]
    assert (scored.token, scored.top) == (4, ())
    assert scored.logprob == pytest.approx(float(LOGITS[0].log_softmax(0)[4]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_draw_nothing_and_spare_the_others(bad):
    logits = LOGITS.repeat(3, 1)
    logits[1, 2] = bad
    choices = [Choice(temperature=1.0, logprobs=1)] * 3
    good = draw(LOGITS, choices[:1])[0]
    assert draw(logits, choices) == [good, type(good)(None), good]
