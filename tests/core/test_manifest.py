import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from umbel.core.contract import Contract, OutputHead
from umbel.core.digests import digest_bytes, digest_json
from umbel.core.errors import AdapterRefused
from umbel.core.manifest import WEIGHTS_FILE, Manifest, ManifestFile, check_path
from umbel.core.validation import told

SEGMENT = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}(\.[A-Za-z0-9]{1,8})?", fullmatch=True)


def manifest(**changes):
    weights = ManifestFile(path=WEIGHTS_FILE, digest=digest_bytes(b"w"), bytes=1)
    facts = {
        "method": "lora",
        "config": {"rank": 8},
        "contract": Contract(output_head=OutputHead.GENERATE),
        "backbone": digest_bytes(b"backbone"),
        "files": (weights,),
    }
    return Manifest(**{**facts, **changes})


@given(st.lists(SEGMENT, min_size=1, max_size=4).map("/".join))
def test_plain_relative_names_are_paths(path):
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "a/../b",
        "a//b",
        "a/",
        "./a",
        ".hidden",
        "a\\b",
        "C:a",
        "a\0b",
        "a b",
        "a\n",
        "ä.txt",
        "a..b",
        "x" * 256,
    ],
)
def test_every_trick_in_a_path_is_refused(path):
    with pytest.raises(AdapterRefused) as refused:
        check_path(path)
    assert refused.value.code == "unsafe_path"


@given(st.text(max_size=40))
def test_a_path_that_passes_never_leaves_its_folder(tmp_path_factory, text):
    try:
        path = check_path(text)
    except AdapterRefused:
        return
    folder = tmp_path_factory.getbasetemp()
    assert (folder / path).resolve().is_relative_to(folder.resolve())


def test_a_manifest_refuses_an_unsafe_file_name():
    with pytest.raises(ValidationError) as refused:
        ManifestFile(path="../x", digest=digest_bytes(b""), bytes=0)
    assert told(refused.value).code == "unsafe_path"


def test_the_digest_is_that_of_the_canonical_json():
    one = manifest()
    assert one.digest() == digest_json(one.model_dump(mode="json", by_alias=True))
    assert Manifest.model_validate_json(one.model_dump_json(by_alias=True)).digest() == one.digest()


@pytest.mark.parametrize(
    "change",
    [
        {"method": "ia3"},
        {"config": {"rank": 4}},
        {"contract": Contract(output_head=OutputHead.GENERATE, template="{text}!")},
        {"backbone": digest_bytes(b"another")},
        {"files": (ManifestFile(path=WEIGHTS_FILE, digest=digest_bytes(b"v"), bytes=1),)},
    ],
)
def test_everything_that_decides_an_answer_changes_the_digest(change):
    assert manifest(**change).digest() != manifest().digest()


def test_words_change_the_digest_but_not_that_of_the_weights():
    changed = manifest(contract=Contract(output_head=OutputHead.GENERATE, description="better words"))
    assert changed.digest() != manifest().digest()
    assert changed.weights_sha256 == manifest().weights_sha256 == digest_bytes(b"w")


def test_a_manifest_of_a_later_schema_is_refused():
    with pytest.raises(ValidationError):
        Manifest.model_validate(manifest().model_dump(by_alias=True) | {"schema": 2})
