"""Reading tensors: all that the format allows an adapter; what is not finite is found by one pass over the numbers."""

import json

import pytest
import torch
from safetensors.torch import save_file

from umbel.adapters.tensorfile import all_finite, read_tensors
from umbel.core.errors import AdapterRefused


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


def test_a_file_is_read_as_safetensors_reads_it(tmp_path):
    tensors = {
        "a.wide": torch.randn(3, 5, dtype=torch.float64),
        "b.none": torch.empty(0, 7, dtype=torch.float16),
        "c.half": torch.randn(7).to(torch.bfloat16),
        "d.one": torch.tensor(2.5),
        "e.ids": torch.tensor([[1], [1 << 40]]),
        "f.flags": torch.tensor([True, False, True]),
    }
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    found = read_tensors(path, integers=True)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


def in_a_file(path, *parts):
    """Tensors one after the other, in whatever order, as another writer may lay them."""
    header, at = {}, 0
    for name, dtype, tensor in parts:
        end = at + tensor.nbytes
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    told = json.dumps(header).encode()
    bodies = (tensor.view(-1).view(torch.uint8).numpy().tobytes() for _, _, tensor in parts)
    path.write_bytes(len(told).to_bytes(8, "little") + told + b"".join(bodies))
    return path


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_numbers_that_lie_at_odd_places_are_read_and_checked(tmp_path, odd):
    narrow, wide, last = torch.randn(3).to(torch.bfloat16), torch.randn(4, 2), torch.randn(5).to(torch.bfloat16)
    parts = [("narrow", "BF16", narrow), ("wide", "F32", wide), ("last", "BF16", last)]
    found = read_tensors(in_a_file(tmp_path / "odd.safetensors", *parts))
    for name, _, tensor in parts:
        assert torch.equal(found[name], tensor)
    for name, _, tensor in parts:
        kept = tensor[-1].clone()
        tensor[-1] = odd
        with pytest.raises(AdapterRefused, match=f"{name} holds NaN or infinity"):
            read_tensors(in_a_file(tmp_path / "odd.safetensors", *parts))
        tensor[-1] = kept


def test_no_tensors_are_none(tmp_path):
    assert read_tensors(in_a_file(tmp_path / "none.safetensors")) == {}
