"""What a step's rows wear costs only where it acts."""

import pytest
import torch

from umbel.adapters.sites import BARE
from umbel.engine.dressing import Dresser


@pytest.mark.parametrize("method", ["prompt", "p_tuning"])
def test_a_soft_prompt_is_no_work_once_its_places_are_read(method, lab):
    """Its rows' answers stand after it, so a decode step must not look at them at all."""
    resident, _ = lab.residents(method, [{"length": 4}])
    dresser, zeros = Dresser(torch.device("cpu")), torch.zeros(2, 1, lab.backbone.shape.hidden)
    assert dresser.dress([resident] * 2, [], 2) is BARE
    reading = dresser.dress([None], [(range(1, 2), resident)], 2)
    places = torch.tensor([[0], [3]])
    found = reading.embed(zeros.clone(), places, places)
    assert not found[0].any()
    assert found[1].any()
