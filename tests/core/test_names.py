import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.core.errors import UsageError
from umbel.core.names import AdapterRef, check_alias, check_name, nearest

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)
ALIASES = NAMES.filter(lambda word: word != "latest" and not word.removeprefix("v").isdigit())
DIGESTS = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)

REFS = st.one_of(
    st.builds(AdapterRef, NAMES),
    st.builds(AdapterRef, NAMES, number=st.integers(1, 10**9)),
    st.builds(AdapterRef, NAMES, alias=ALIASES | st.just("latest")),
    st.builds(AdapterRef, NAMES, digest=DIGESTS),
)


@given(REFS)
def test_a_reference_reads_back_as_it_was_written(ref):
    assert AdapterRef.parse(str(ref)) == ref


@given(st.text(alphabet="ab1v:@-._/ ", max_size=12) | st.text(max_size=80))
def test_any_text_is_a_reference_or_an_error_that_says_how_to_write_one(text):
    outcome = parsed(text)
    if isinstance(outcome, UsageError):
        assert outcome.code in {"invalid_name", "invalid_alias", "invalid_reference"}
        assert outcome.hint
    else:
        assert check_name(outcome.name) == outcome.name
        assert [outcome.number, outcome.alias, outcome.digest].count(None) >= 2


def parsed(text: str) -> AdapterRef | UsageError:
    try:
        return AdapterRef.parse(text)
    except UsageError as error:
        return error


@pytest.mark.parametrize("name", ["", "-x", ".x", "Sentiment", "a b", "a/b", "a:1", "a@b", "..", "ä", "x" * 64, "a\n"])
def test_a_name_that_would_break_a_path_a_url_or_a_reference_is_refused(name):
    with pytest.raises(UsageError) as refused:
        check_name(name)
    assert refused.value.code == "invalid_name"


@pytest.mark.parametrize("alias", ["latest", "3", "v3", "V", "", "can ary"])
def test_an_alias_that_reads_like_a_version_is_refused(alias):
    with pytest.raises(UsageError) as refused:
        check_alias(alias)
    assert refused.value.code == "invalid_alias"


@pytest.mark.parametrize(
    "text", ["a:0", "a:-1", "a:x", "a:", "a:1:2", "a:1@b", "a@", "a@sha256:abc", "a@sha256:" + "A" * 64, "a:²"]
)
def test_a_half_written_reference_is_refused(text):
    with pytest.raises(UsageError):
        AdapterRef.parse(text)


def test_the_message_says_what_the_name_was_for():
    with pytest.raises(UsageError, match="cannot name a backbone"):
        check_name("A", "backbone")
    with pytest.raises(UsageError, match="cannot name an experiment"):
        check_name("A", "experiment")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("sentimant", "sentiment"), ("smolm2", "smollm2-135m-instruct"), ("tin", "tiny"), ("s", None), ("zebra", None)],
)
def test_a_name_nearly_right_means_the_one_that_is_most_like_it_or_begins_so(name, meant):
    assert nearest(name, ["sentiment", "smollm2-135m-instruct", "tiny"]) == meant
