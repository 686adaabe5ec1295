"""Reading tensors: what is not finite is found by one pass over the numbers."""

import pytest
import torch

from umbel.adapters.tensorfile import all_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_number_that_is_not_finite_is_found_and_large_ones_are_no_fault(dtype):
    many, ids = torch.full((40, 50), torch.finfo(dtype).max, dtype=dtype), torch.tensor([3])
    assert all_finite([many, ids, -many])
    for odd in (float("nan"), float("inf"), -float("inf")):
        small = torch.ones(40, 50, dtype=dtype)
        assert all_finite([small])
        small[7, 9] = odd
        assert not all_finite([many, small])
    assert not all_finite([torch.tensor([float("inf"), -float("inf")], dtype=dtype)])
    assert all_finite([])
