"""Every field of OpenAI's routes is honoured, without effect, or refused; none is forgotten."""

from pathlib import Path

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params

from umbel.core.wire.chat import ChatRequest
from umbel.core.wire.completions import CompletionRequest
from umbel.core.wire.pooled import EmbeddingsRequest

DOCS = Path(__file__).parents[2] / "docs" / "http.md"
MARKS = {"Refused": "refuses", "Accepted, without effect": "accepts", "": "honours"}
"""How a field's description begins, and the row of the page's table that names it."""


def fields_of(*kinds):
    return {field for kind in kinds for field in kind.__annotations__}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            fields_of(
                chat_create_params.CompletionCreateParamsBase,
                chat_create_params.CompletionCreateParamsNonStreaming,
                chat_create_params.CompletionCreateParamsStreaming,
            ),
            ChatRequest,
        ),
        (
            fields_of(
                completion_create_params.CompletionCreateParamsBase,
                completion_create_params.CompletionCreateParamsStreaming,
            ),
            CompletionRequest,
        ),
        (fields_of(embedding_create_params.EmbeddingCreateParams), EmbeddingsRequest),
    ],
)
def test_no_field_of_openais_is_unknown(theirs, ours):
    assert theirs
    assert theirs - set(ours.model_fields) == set()


@pytest.mark.parametrize("request_type", [ChatRequest, CompletionRequest])
def test_the_page_says_of_every_field_what_becomes_of_it(request_type):
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    told = {word: next(line for line in lines if line.startswith(f"| {word}")) for word in MARKS.values()}
    for name, field in request_type.model_fields.items():
        mark = (field.description or "").partition(":")[0]
        assert f"`{name}`" in told[MARKS.get(mark, "honours")], name
