import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from umbel.core.contract import Contract, Decoding, OutputHead
from umbel.core.errors import UmbelError
from umbel.core.validation import told


def refusal(**fields: object) -> UmbelError:
    with pytest.raises(ValidationError) as refused:
        Contract.model_validate(fields)
    return told(refused.value)


@given(st.text(), st.text().filter(lambda text: "{text}" not in text))
def test_filling_a_template_changes_nothing_but_its_slot(text, around):
    contract = Contract(output_head=OutputHead.GENERATE, template=around + "{text}" + around)
    assert contract.fill(text) == around + text + around


def test_braces_in_a_text_are_only_text():
    contract = Contract(output_head=OutputHead.GENERATE, template="Review: {text}")
    assert contract.fill("{0} {x!r} {text}") == "Review: {0} {x!r} {text}"


@pytest.mark.parametrize("template", ["", "no slot", "{text} and {text}"])
def test_a_template_without_exactly_one_slot_is_refused_with_the_fix(template):
    refused = refusal(output_head=OutputHead.GENERATE, template=template)
    assert refused.code == "invalid_template"
    assert "{text}" in str(refused.hint)


@pytest.mark.parametrize(
    ("labels", "multi", "code"),
    [((), False, "missing_labels"), (("a",), False, "missing_labels"), ((), True, "missing_labels")],
)
@pytest.mark.parametrize("head", [OutputHead.CLASSIFY, OutputHead.TAG])
def test_a_head_that_names_labels_needs_them(head, labels, multi, code):
    refused = refusal(output_head=head, labels=labels, multi_label=multi)
    assert refused.code == code


def test_one_label_is_enough_where_each_label_is_its_own_question():
    assert Contract(output_head=OutputHead.CLASSIFY, labels=("spam",), multi_label=True).labels == ("spam",)


def test_labels_that_repeat_are_refused():
    refused = refusal(output_head=OutputHead.CLASSIFY, labels=("a", "b", "a"))
    assert refused.code == "duplicate_labels"


def test_an_unknown_key_is_an_error_that_names_it():
    refused = refusal(output_head="generate", lables=["a"])
    assert (refused.code, refused.param) == ("unknown_key", "lables")
    assert "lables" in refused.message


def test_a_wrong_value_is_told_by_the_path_of_its_field():
    refused = refusal(output_head="generate", decoding={"temperature": -1})
    assert refused.param == "decoding.temperature"
    assert "greater than or equal to 0" in refused.message


@given(
    st.builds(
        Contract,
        output_head=st.just(OutputHead.CLASSIFY),
        labels=st.lists(st.text(), min_size=2, max_size=5, unique=True).map(tuple),
        threshold=st.floats(0.01, 0.99),
        decoding=st.builds(Decoding, max_tokens=st.integers(1, 4096), stop=st.lists(st.text()).map(tuple)),
    )
)
def test_a_contract_survives_its_own_json(contract):
    assert Contract.model_validate_json(contract.model_dump_json()) == contract
