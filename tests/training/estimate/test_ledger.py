"""What the ledger counts beside bytes, and that an estimate is no lower than what was held already."""

import pytest
import torch

from umbel.core.held import most_held
from umbel.training.estimate.ledger import Ledger
from umbel.training.observer import Observer


def test_a_product_is_counted_once_for_each_of_its_sizes():
    wide, narrow, weight = torch.ones(4, 3), torch.ones(2, 3), torch.ones(3, 5)
    with Ledger([wide, narrow, weight], {}) as ledger:
        for rows in (wide, wide, narrow):
            rows @ weight
        torch.bmm(wide[None], weight[None])
        wide + wide
    assert len(ledger.products) == 3
    assert (torch.Size((4, 3)), torch.Size((3, 5))) in ledger.products


def test_sizes_of_the_backward_pass_count_too():
    x, weight = torch.ones(4, 3), torch.ones(3, 5, requires_grad=True)
    with Ledger([x, weight], {weight: 1.0}) as ledger:
        (x @ weight).sum().backward()
    ledger.close()
    assert (torch.Size((3, 4)), torch.Size((4, 5))) in ledger.products


def test_a_training_that_needs_less_than_what_was_held_before_is_told_that(tasks, backbone, settings):
    """As on a large backbone, whose loading holds more than the training of a small head."""
    from umbel.training import fit

    class Ears(Observer):
        def planned(self, plan):
            self.plan = plan

    block = bytearray(b"1") * (1 << 30)
    del block
    ears = Ears()
    fit(backbone, [tasks["mood"]], settings=settings, observer=ears)
    assert ears.plan.memory == pytest.approx(most_held(), rel=0.02)
