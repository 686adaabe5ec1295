"""From a request to token ids, by the adapter's contract: what training did to a text, serving does too.

One worker thread tokenises, so that a long text stops neither the event loop nor other requests' tokens.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from umbel.backbone.texts import Encoded, cut, encode_texts
from umbel.backbone.tokenizer import Tokenizer
from umbel.backbone.words import EncodedWords, encode_words, join_words, split_words
from umbel.core.contract import Contract
from umbel.core.errors import UmbelError, UsageError
from umbel.core.wire.chat import Message

T = TypeVar("T")


class Texts:
    """Token ids of requests. ``context`` is the most tokens that the backbone reads and writes together."""

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="umbel-texts")
        self._tokens: dict[int, str] = {}

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def completions(self, contract: Contract, prompts: Sequence[str] | Sequence[list[int]]) -> list[list[int]]:
        """Texts as they are, without the template; ids as they are. Raises UsageError for one that is too long."""
        ids = await self._off_loop(lambda: [self._ids(prompt, contract.add_special_tokens) for prompt in prompts])
        for index, prompt in enumerate(ids):
            self._check(contract, prompt, "prompt" if len(ids) == 1 else f"prompt.{index}")
        return ids

    async def chat(self, contract: Contract, messages: Sequence[Message]) -> list[int]:
        """A conversation in the backbone's template, or the one user message in the adapter's."""
        if contract.input_form == "messages":
            plain = [message.plain for message in messages]
            ids = await self._off_loop(lambda: self._rendered(plain))
        else:
            text = _only_message(messages)
            ids = (await self._off_loop(lambda: encode_texts(self.tokenizer, contract, [text])))[0].ids
        self._check(contract, ids, "messages")
        return ids

    async def pooled(self, contract: Contract, inputs: Sequence[str] | Sequence[list[int]]) -> list[Encoded]:
        """Texts in the adapter's template, cut to its length; ids are cut only."""
        texts = [item for item in inputs if isinstance(item, str)]
        if len(texts) == len(inputs):
            found = await self._off_loop(lambda: encode_texts(self.tokenizer, contract, texts))
        else:
            found = [cut(list(item), contract) for item in inputs if not isinstance(item, str)]
        for index, item in enumerate(found):
            if not item.ids:
                raise _empty("input" if len(found) == 1 else f"input.{index}")
        return found

    async def words(self, contract: Contract, inputs: Sequence[str | list[str]]) -> list[EncodedWords]:
        """Texts, which are split into words here, or words that the caller has split."""
        found = await self._off_loop(lambda: [self._words(contract, item) for item in inputs])
        for index, item in enumerate(found):
            if not item.ids:
                raise _empty("input" if len(found) == 1 else f"input.{index}")
        return found

    def _words(self, contract: Contract, item: str | list[str]) -> EncodedWords:
        text, words = (item, split_words(item)) if isinstance(item, str) else join_words(item)
        return encode_words(self.tokenizer, contract, text, words)

    async def tokens(self, text: str, *, special: bool) -> list[int]:
        return await self._off_loop(lambda: self.tokenizer.encode(text, special=special))

    async def chat_tokens(self, messages: Sequence[Message], *, reply: bool) -> list[int]:
        plain = [message.plain for message in messages]
        return await self._off_loop(lambda: self._rendered(plain, reply=reply))

    def token(self, index: int) -> str:
        """One token's own text form, as logprobs show it."""
        if index not in self._tokens:
            self._tokens[index] = self.tokenizer.token(index)
        return self._tokens[index]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(self._known(list(ids)), skip_special=False)

    def _ids(self, prompt: str | list[int], special: bool) -> list[int]:
        return self.tokenizer.encode(prompt, special=special) if isinstance(prompt, str) else prompt

    def _known(self, ids: list[int]) -> list[int]:
        size = len(self.tokenizer.hf)
        if beyond := [index for index in ids if not 0 <= index < size]:
            raise UsageError(
                f"token id {beyond[0]} is beyond the vocabulary of {size} tokens.",
                code="unknown_token",
                hint="take ids from this server's /tokenize",
            )
        return ids

    def _rendered(self, messages: list[dict[str, str]], *, reply: bool = True) -> list[int]:
        try:
            return self.tokenizer.chat(messages, reply=reply)
        except UmbelError:
            raise
        except Exception as error:  # the template is the backbone's program: it may refuse by any error
            raise UsageError(
                f"the backbone's chat template refuses these messages: {error}.",
                code="chat_template_refused",
                param="messages",
                hint="alternate user and assistant, starting with an optional system message",
            ) from error

    def _check(self, contract: Contract, ids: list[int], param: str) -> None:
        """Generation never cuts a prompt: the answer would look right and be to another question."""
        if not ids:
            raise _empty(param)
        most = min(contract.max_length, self.context)
        if len(ids) > most:
            raise UsageError(
                f"{param} has {len(ids)} tokens; at most {most} fit.",
                code="context_length_exceeded",
                param=param,
                hint="shorten it: prompts for generation are never cut",
            )


def _only_message(messages: Sequence[Message]) -> str:
    if len(messages) != 1 or messages[0].role != "user":
        roles = ", ".join(message.role for message in messages)
        raise UsageError(
            f"this adapter reads one text, not a conversation; got messages of {roles}.",
            code="history_not_supported",
            param="messages",
            hint="send one message of the role user, which fills the adapter's template",
        )
    return messages[0].text


def _empty(param: str) -> UsageError:
    return UsageError(f"{param} is empty: it has no token.", code="empty_input", param=param, hint="send some text")
