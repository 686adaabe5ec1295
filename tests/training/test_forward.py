"""The loss of a pass against the same sum by hand: each row alone, unpadded, token by token."""

import math
from dataclasses import replace

import pytest
import torch

from umbel.adapters.head import pool
from umbel.adapters.wear import fuse_all, wear
from umbel.backbone.decoder import whole_step
from umbel.training.forward import lay_out, run_pass
from umbel.training.passes import Seat
from umbel.training.prepared import prepare
from umbel.training.trainee import trainee_of


@pytest.fixture
def trainees(tasks, wide, settings):
    prompted = replace(tasks["speech"], name="prompted", method="prompt", options={"length": 3})
    prefixed = replace(tasks["mood"], name="prefixed", method="prefix", options={"length": 3}, pooling="mean")
    near = [
        replace(tasks["alike"], name=method, method=method, options={"length": 3}) for method in ("prompt", "prefix")
    ]
    given = [*tasks.values(), prompted, prefixed, *near]
    made = [trainee_of(prepare(task, wide, settings), wide) for task in given]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for trainee in made:
            for tensor in trainee.trained.values():
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return made


@torch.no_grad()
def by_hand(wide, adapter, example) -> float:
    virtual = adapter.weights.num_virtual
    ids = torch.tensor([[0] * virtual + example.ids.tolist()])
    worn = fuse_all([adapter])
    step = whole_step(
        wear(worn, [0], least=1),
        rows=1,
        tokens=ids.shape[1],
        offsets=torch.tensor([adapter.weights.num_past]),
        want=torch.arange(ids.shape[1]),
    )
    output = wide.decoder(ids, step)
    if example.spoken is not None:
        return _spoken(output.logits.log_softmax(-1), example, virtual)
    hidden, head = output.hidden, adapter.head
    if example.words:
        logits = [head.logits(hidden[0, virtual + place][None])[0].log_softmax(-1) for place in example.words]
        return -sum(float(row[int(tag)]) for row, tag in zip(logits, example.target, strict=True))
    lengths, skip = torch.tensor([ids.shape[1]]), torch.tensor([virtual])
    logits = head.logits(pool(hidden, lengths, skip, head.config.pooling))[0]
    if adapter.contract.output_head == "regress":
        return (float(logits[0]) - example.target[0]) ** 2
    if adapter.contract.multi_label:
        chosen = [p if truth else 1 - p for p, truth in zip(logits.sigmoid(), example.target, strict=True)]
        return -sum(float(p.log()) for p in chosen) / len(chosen)
    return -float(logits.log_softmax(-1)[int(example.target[0])])


@torch.no_grad()
def pairs_by_hand(wide, trainee, examples) -> float:
    """Each pair's own positive against all positives and negatives of the batch."""
    vectors = {text.index: vector(wide, trainee.adapter, text) for pair in examples for text in pair.sequences}
    candidates = [pair.mates[0] for pair in examples] + [mate for pair in examples for mate in pair.mates[1:]]
    loss = 0.0
    for pair in examples:
        scores = {c.index: float(vectors[pair.index] @ vectors[c.index]) / trainee.task.temperature for c in candidates}
        loss += pair.weight * (math.log(sum(map(math.exp, scores.values()))) - scores[pair.mates[0].index])
    return loss


def vector(wide, adapter, example):
    """The mean over the text's own tokens, at length one."""
    virtual = adapter.weights.num_virtual
    ids = torch.tensor([[0] * virtual + example.ids.tolist()])
    step = whole_step(
        wear(fuse_all([adapter]), [0], least=1),
        rows=1,
        tokens=ids.shape[1],
        offsets=torch.tensor([adapter.weights.num_past]),
    )
    mean = wide.decoder(ids, step).hidden[0, virtual:].mean(0)
    return mean / mean.norm()


def _spoken(logprobs, example, virtual) -> float:
    """The token at a place is what the place before it must predict."""
    places = [place for place, spoken in enumerate(example.spoken) if spoken]
    return -sum(float(logprobs[virtual + place - 1, int(example.ids[place])]) for place in places)


def test_a_mixed_padded_pass_sums_what_each_row_alone_loses(trainees, wide):
    examples = [trainee.prepared.train.examples[2:5] for trainee in trainees]
    seats = [seat for i, trainee in enumerate(trainees) for seat in trainee.seats(i, examples[i])]
    adapters = [trainee.adapter for trainee in trainees]
    scores = run_pass(wide, adapters, fuse_all(adapters), seats)
    assert scores.keys() == set(range(len(trainees)))
    for i, trainee in enumerate(trainees):
        if trainee.task.task == "embed":
            wanted = pairs_by_hand(wide, trainee, examples[i])
        else:
            wanted = sum(by_hand(wide, trainee.adapter, example) for example in examples[i])
        assert float(scores[i].loss.detach()) == pytest.approx(wanted, rel=1e-9), trainee.task.name
        assert scores[i].count == sum(example.count for example in examples[i])


def test_logits_are_computed_only_where_a_token_is_supervised(trainees, wide):
    speech = trainees[0]
    seats = speech.seats(0, speech.prepared.train.examples[:4])
    laid = lay_out(seats, wide.device)
    assert len(laid.want) == sum(seat.example.count for seat in seats) < laid.tokens.numel()
    flat = laid.tokens.flatten()
    assert laid.targets.tolist() == [int(flat[place + 1]) for place in laid.want.tolist()]


@torch.no_grad()
def test_a_row_s_padding_and_mates_do_not_move_its_loss(trainees, wide):
    mood = trainees[1]
    example = min(mood.prepared.train.examples, key=lambda each: len(each.ids))
    longest = max(mood.prepared.train.examples, key=lambda each: len(each.ids))
    worn = fuse_all([mood.adapter])
    both = [Seat(0, longest), Seat(0, example)]
    alone = [float(run_pass(wide, [mood.adapter], worn, [seat])[0].loss) for seat in both]
    together = float(run_pass(wide, [mood.adapter], worn, both)[0].loss)
    assert together == pytest.approx(sum(alone), rel=1e-12)
