import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core.courtesy import PIECE
from umbel.core.digests import DIGEST, canonical_json, digest_bytes, digest_file, digest_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_json_loses_nothing(value):
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), st.integers(), max_size=6), st.randoms())
def test_the_order_of_keys_does_not_change_a_digest(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert digest_json(dict(items)) == digest_json(value)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_know_is_refused(number):
    with pytest.raises(ValueError):
        canonical_json({"x": number})


@given(data=st.binary(max_size=4096))
def test_a_file_and_its_bytes_have_one_digest(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("digest") / "file"
    path.write_bytes(data)
    assert digest_file(path) == digest_bytes(data) == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert DIGEST.fullmatch(digest_file(path))


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_file_of_several_pieces_has_the_digest_of_its_bytes(tmp_path, more):
    data = bytes(range(251)) * (2 * PIECE // 251 + 1)
    data = data[: 2 * PIECE + more]
    (tmp_path / "file").write_bytes(data)
    assert digest_file(tmp_path / "file") == digest_bytes(data)
