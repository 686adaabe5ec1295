"""The matrix of docs/methods.md: every method under every output head, both directions of PEFT, and the engine."""

import pytest
from benchmarks.parity import METHODS, cells, make_bed

from umbel.adapters import catalog
from umbel.core.contract import OutputHead


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    return make_bed(tmp_path_factory.mktemp("bed"))


def test_the_matrix_has_every_method_and_output_head():
    assert METHODS.keys() == catalog.methods().keys()
    assert {str(head) for head in OutputHead} == {str(head) for head in catalog.heads()}


@pytest.mark.parametrize("head", list(OutputHead), ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_every_direction_and_dtype_is_within_its_bound(method, head, bed, tmp_path):
    found = list(cells(bed, method, head, tmp_path))
    assert {cell.dtype for cell in found} == {"float32", "bfloat16", "float64"}
    assert [str(cell) for cell in found if not cell.passes] == []
