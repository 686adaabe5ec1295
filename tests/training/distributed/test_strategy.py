"""What a strategy's name means, and what cannot be."""

import pytest

from umbel.core.errors import ConfigError
from umbel.training.distributed.group import Group
from umbel.training.distributed.share import share
from umbel.training.distributed.strategy import Strategy, _offload
from umbel.training.passes import Packing, Seat


@pytest.mark.parametrize(
    ("name", "size", "shards"),
    [(None, 1, 1), (None, 4, 1), ("ddp", 4, 1), ("fsdp", 4, 4), ("fsdp-grad-op", 2, 2), ("hsdp=2", 4, 2)],
)
def test_a_strategy_says_how_many_share_one_set_of_weights(name, size, shards):
    assert Strategy.read(name, size).shards == shards


@pytest.mark.parametrize(
    ("name", "size"), [("none", 2), ("fsdp", 1), ("hsdp=3", 4), ("hsdp", 4), ("hsdp=0", 4), ("zero", 2), ("hsdp=x", 2)]
)
def test_a_strategy_that_cannot_be_is_refused_with_those_that_can(name, size):
    with pytest.raises(ConfigError) as caught:
        Strategy.read(name, size)
    assert caught.value.code == "invalid_strategy"
    assert caught.value.hint


def test_offload_is_refused_on_the_cpu():
    class Mesh:
        device_type = "cpu"

    with pytest.raises(ConfigError) as caught:
        _offload(Strategy("fsdp", 2, offload=True), Mesh())
    assert caught.value.code == "offload_needs_cuda"


class Row:
    """A row of so many tokens; nothing else bears on who takes it."""

    def __init__(self, tokens: int) -> None:
        self.ids = [0] * tokens


@pytest.mark.parametrize("rows", [1, 3, 8, 13])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_row_has_one_process_and_all_run_the_same_number_of_passes(rows, size):
    seats = [Seat(0, Row(5 + 3 * i)) for i in range(rows)]
    shares = [share(seats, Packing(tokens=60), Group(rank, size)) for rank in range(size)]
    assert len({len(passes) for passes in shares}) == 1
    taken = [seat for passes in shares for part in passes if not part.ghost for seat in part.seats]
    assert sorted(map(id, taken)) == sorted(map(id, seats))
