"""Asks one version, or the bare backbone, all questions of a dataset: through the engine that serves it, in batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel.adapters.head import HeadConfig
from umbel.adapters.heads.classify import probabilities
from umbel.backbone.backbone import Backbone
from umbel.backbone.texts import encode_texts
from umbel.backbone.words import encode_words, join_words
from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import DataError
from umbel.core.protocols import AdapterSource
from umbel.core.wheels import Say, silent
from umbel.engine import Answer, Engine, GenerateRequest, Handle, PoolRequest, Request
from umbel.evaluation.nearest import bare_vectors, candidates_of, ranks
from umbel.evaluation.questions import Questions, several
from umbel.training.data.rows import ChatRow, PairRow, PromptRow, Row, TaggedRow

_KV_BYTES = 1 << 30
_ADAPTER_BYTES = 1 << 30
_SUBMITTED = 256
"""Requests in the engine at once; the rest wait outside, so that a large file needs no memory."""


@dataclass(frozen=True, slots=True)
class Answers:
    """``outputs[i]`` is what row i was answered, as text; probabilities [rows, labels] where one label is chosen."""

    outputs: list[str]
    probabilities: NDArray[np.float64] | None = None
    labels: tuple[str, ...] = ()
    """Order of the probabilities."""
    ranks: NDArray[np.int64] | None = None
    """Embed: the place of each row's positive among all candidates, from 1; ``outputs`` are the nearest ones."""


class Asker:
    """An engine of its own on a loaded backbone. Decoding is greedy, so asking again gives the same answers."""

    def __init__(self, backbone: Backbone, adapters: AdapterSource) -> None:
        self.backbone = backbone
        self.adapters = adapters
        self.engine = Engine(backbone, adapters, kv_bytes=_KV_BYTES, adapter_bytes=_ADAPTER_BYTES)

    def close(self) -> None:
        self.engine.close()

    def ask(
        self,
        digest: str | None,
        contract: Contract,
        questions: Questions,
        *,
        say: Say = silent,
        most: int | None = None,
    ) -> Answers:
        """``digest`` None asks the bare backbone, which can only generate. ``most`` overrides the tokens of an answer.

        Raises DataError for a prompt that is too long, naming its line.
        """
        if contract.output_head is OutputHead.EMBED:
            return self._find(digest, contract, questions, say)
        requests = [self._request(row, digest, contract, most) for row in questions.rows]
        found = self._run(requests, say)
        if contract.output_head is OutputHead.GENERATE:
            return Answers([answer.text for answer in found])
        if contract.output_head is OutputHead.TAG:
            return Answers([self._tags(row, contract, a) for row, a in zip(questions.rows, found, strict=True)])
        return _pooled(contract, found)

    def find_bare(self, digest: str, contract: Contract, questions: Questions) -> Answers:
        """What the backbone finds without the embedder ``digest``, pooled and read as the embedder does."""
        rows, texts = _pairs(questions)
        pooling = HeadConfig(**self.adapters.fetch(digest).manifest.config["head"]).pooling
        assert pooling is not None, "a stored head has one"
        encoded = encode_texts(self.backbone.tokenizer, contract, texts)
        vectors = bare_vectors(self.backbone, [one.ids for one in encoded], pooling)
        return _found(rows, dict(zip(texts, vectors, strict=True)))

    def _find(self, digest: str | None, contract: Contract, questions: Questions, say: Say) -> Answers:
        assert digest is not None, "the bare backbone has no output head"
        rows, texts = _pairs(questions)
        encoded = encode_texts(self.backbone.tokenizer, contract, texts)
        answers = self._run([PoolRequest(tokens=tuple(one.ids), adapter=digest) for one in encoded], say)
        return _found(rows, {t: a.logits for t, a in zip(texts, answers, strict=True) if a.logits is not None})

    def _run(self, requests: Sequence[Request], say: Say) -> list[Answer]:
        found: list[Answer] = []
        for start in range(0, len(requests), _SUBMITTED):
            handles: list[Handle] = [self.engine.submit(request) for request in requests[start : start + _SUBMITTED]]
            found += [handle.result() for handle in handles]
            say(f"{len(found)} of {len(requests)} rows answered")
        return found

    def _request(self, row: Row, digest: str | None, contract: Contract, most: int | None) -> Request:
        ids = tuple(self._ids(row, contract))
        if contract.output_head is not OutputHead.GENERATE:
            assert digest is not None, "the bare backbone has no output head"
            return PoolRequest(tokens=ids, adapter=digest)
        if len(ids) > contract.max_length:
            raise DataError(
                f"line {row.line}: the prompt has {len(ids)} tokens, at most {contract.max_length} fit.",
                code="prompt_too_long",
                hint="remove the row: prompts for generation are never cut",
            )
        decoding = contract.decoding
        limit = most or decoding.max_tokens
        return GenerateRequest(tokens=ids, adapter=digest, max_tokens=limit, stop=decoding.stop)

    def _ids(self, row: Row, contract: Contract) -> list[int]:
        tokenizer = self.backbone.tokenizer
        if isinstance(row, ChatRow):
            return tokenizer.chat(row.messages[:-1])
        if isinstance(row, TaggedRow):
            text, words = join_words(row.tokens)
            return encode_words(tokenizer, contract, text, words).ids
        text = row.prompt if isinstance(row, PromptRow) else row.text
        return encode_texts(tokenizer, contract, [text])[0].ids

    def _tags(self, row: Row, contract: Contract, answer: Answer) -> str:
        assert isinstance(row, TaggedRow)
        assert answer.logits is not None
        text, words = join_words(row.tokens)
        places = encode_words(self.backbone.tokenizer, contract, text, words).places
        best = answer.logits.argmax(-1).tolist()
        return " ".join(contract.labels[best[place]] if place is not None else "?" for place in places)


def _pairs(questions: Questions) -> tuple[list[PairRow], list[str]]:
    """(rows, every different text in them)."""
    rows = [row for row in questions.rows if isinstance(row, PairRow)]
    return rows, list(dict.fromkeys([*(row.text for row in rows), *candidates_of(rows)]))


def _found(rows: Sequence[PairRow], vectors: Mapping[str, Tensor]) -> Answers:
    places, nearest = ranks(rows, vectors)
    return Answers(nearest, ranks=places)


def _pooled(contract: Contract, found: Sequence[Answer]) -> Answers:
    logits = np.stack([answer.logits.double().numpy() for answer in found if answer.logits is not None])
    if contract.output_head is OutputHead.REGRESS:
        return Answers([repr(float(value)) for value in logits[:, 0]])
    shares = probabilities(torch.from_numpy(logits), multi_label=contract.multi_label).numpy()
    if contract.multi_label:
        return Answers(
            [
                several(label for label, p in zip(contract.labels, row, strict=True) if p >= contract.threshold)
                for row in shares
            ]
        )
    return Answers([contract.labels[best] for best in shares.argmax(1)], shares, contract.labels)
