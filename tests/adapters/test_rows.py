"""Rows and slots: what is added, put or scattered reaches the row that wears the slot, and no other.

The oracle is one row after another. Every layout is met: views and gathers, filled-up groups, gaps, bare rows.
"""

import pytest
import torch

from umbel.adapters.rows import Rows, plan_rows

LAYOUTS = {
    "one row": ([0], [0], 1),
    "one row of several": ([2], [1], 4),
    "all, one each": ([0, 1, 2], [0, 1, 2], 3),
    "all, two each": ([0, 1, 2, 3], [1, 1, 2, 2], 4),
    "side by side among bare rows": ([1, 2, 3, 4], [0, 0, 1, 1], 7),
    "one each among bare rows": ([2, 3, 4], [0, 1, 2], 6),
    "in another order": ([0, 1, 2], [2, 0, 1], 3),
    "in turn": ([0, 1, 2, 3], [0, 1, 0, 1], 4),
    "unequal groups side by side": ([0, 1, 2, 3], [0, 0, 0, 1], 4),
    "unequal groups, the first smaller": ([0, 1, 2, 3], [0, 1, 1, 1], 4),
    "a slot between that nobody wears": ([0, 1], [0, 2], 2),
    "a bare row between": ([0, 2], [0, 0], 3),
}
SLOTS, WIDTH = 4, 6
COLUMNS = [None, slice(0, 2), slice(2, 6)]


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


@pytest.fixture(params=[1, 3], ids=["decode", "prompt"])
def tokens(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["serving", "training"])
def grad(request):
    with torch.set_grad_enabled(request.param):
        yield request.param


def random(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64)


def grouped(laid, x, change):
    """``change`` [SLOTS, F] times each row of x, as the sites make it: [S, C * T, F]."""
    return laid.take(x) * laid.of(change)[:, None]


def expected(layout, y, x, change, columns, combine):
    rows, slots, _ = layout
    result, own = y.clone(), columns or slice(None)
    for row, slot in zip(rows, slots, strict=True):
        result[row, :, own] = combine(y[row, :, own], x[row, :, own] * change[slot, own])
    return result


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("how", ["add", "put"])
def test_what_is_added_or_put_reaches_its_own_row_and_columns(how, layout, tokens, columns, least, grad):
    rows, slots, batch = layout
    laid = Rows(rows, slots, batch=batch, least=least)
    x, y, change = random(batch, tokens, WIDTH), random(batch, tokens, WIDTH), random(SLOTS, WIDTH)
    wanted = expected(layout, y, x, change, columns, (lambda a, b: a + b) if how == "add" else (lambda a, b: b))
    new = grouped(laid, x, change)[..., columns or slice(None)]
    same(getattr(laid, how)(y.clone(), new, columns), wanted)


@pytest.mark.parametrize("how", ["add", "put"])
def test_in_serving_it_is_written_in_place(how, layout):
    rows, slots, batch = layout
    laid, y = Rows(rows, slots, batch=batch), random(batch, 1, WIDTH)
    with torch.no_grad():
        assert getattr(laid, how)(y, grouped(laid, y, random(SLOTS, WIDTH))) is y


def test_blocks_lie_side_by_side_in_the_columns(layout, tokens):
    rows, slots, batch = layout
    laid = Rows(rows, slots, batch=batch)
    x, y, change = random(batch, tokens, WIDTH), random(batch, tokens, WIDTH), random(SLOTS, WIDTH)
    delta = grouped(laid, x, change).unflatten(-1, (3, 2)).movedim(-2, 1)
    with torch.no_grad():
        found = laid.add_blocks(y.clone(), delta)
    same(found, expected(layout, y, x, change, None, lambda a, b: a + b))


def test_each_slot_scatters_into_its_own_columns(layout, tokens):
    rows, slots, batch = layout
    laid, y = Rows(rows, slots, batch=batch), random(batch, tokens, WIDTH)
    columns = torch.tensor([[0, 3], [5, 1], [2, 4], [1, 0]])
    x = random(batch, tokens, 2)
    wanted = y.clone()
    for row, slot in zip(rows, slots, strict=True):
        wanted[row][:, columns[slot]] = x[row] * (slot + 1)
    new = grouped(laid, x, torch.arange(1.0, SLOTS + 1)[:, None].double())
    with torch.no_grad():
        same(laid.scatter(y.clone(), new, columns), wanted)


def test_each_row_is_spread_its_own_slot_and_bare_rows_zeros(layout):
    rows, slots, batch = layout
    stack, wanted = random(SLOTS, 2), torch.zeros(batch, 2, dtype=torch.float64)
    wanted[rows] = stack[slots]
    assert torch.equal(Rows(rows, slots, batch=batch).spread(stack), wanted)


def test_a_busy_slot_does_not_fill_up_the_quiet_ones_and_nobody_is_lost():
    slots = [0] * 40 + list(range(1, 20))
    plans = plan_rows(range(59), slots, batch=59)
    assert len(plans) == 20
    assert max(laid.width * laid.num_slots for laid in plans) == 40
    assert sorted(row for laid in plans for row in laid.rows) == list(range(59))
