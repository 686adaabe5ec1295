"""Python searches for garbage as it did before, once a start has settled."""

import gc

from umbel.core.collecting import settle, start_without


def test_settling_without_a_start_does_nothing():
    usual, frozen = gc.get_threshold(), gc.get_freeze_count()
    settle()
    assert (gc.get_threshold(), gc.get_freeze_count()) == (usual, frozen)


def test_a_start_hardly_searches_and_then_as_before():
    usual = gc.get_threshold()
    try:
        start_without()
        assert gc.get_threshold()[0] > 100 * usual[0]
        settle()
        assert gc.get_threshold() == usual
        assert gc.get_freeze_count() > 0
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()
