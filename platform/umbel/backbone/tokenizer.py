"""The backbone's tokenizer and chat template, as its folder has them."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from umbel.core.errors import ConfigError

Message = dict[str, str]
"""{"role": ..., "content": ...}"""


_MOST_PIECES = 1 << 14
_TOLD = ("config.json", "tokenizer_config.json")
_USUAL = ("PreTrainedTokenizerFast", "TokenizersBackend")


class Tokenizer:
    """Text to token ids and back. Special tokens written out in a text are read as such, as vLLM and HF do."""

    def __init__(self, hf: Any) -> None:
        self.hf = hf
        self._fast = _undecorated(hf)
        self._pieces: dict[int, str] = {}
        self.bos: int | None = hf.bos_token_id
        self.eos: int | None = hf.eos_token_id
        self.has_chat_template = bool(hf.chat_template)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """``special`` puts the tokenizer's own special tokens (BOS) around."""
        return list(self.hf.encode(text, add_special_tokens=special))

    def encode_all(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """``encode`` of many texts at once, which is much faster than one by one."""
        if not texts:
            return []
        return [list(ids) for ids in self.hf(list(texts), add_special_tokens=special)["input_ids"]]

    def chat(self, messages: Sequence[Message], *, reply: bool = True) -> list[int]:
        """Ids of a conversation in the backbone's own template; ``reply`` opens the assistant's turn."""
        return self.encode(self.chat_text(messages, reply=reply))

    def chat_text(self, messages: Sequence[Message], *, reply: bool = True) -> str:
        if not self.has_chat_template:
            raise ConfigError(
                "this backbone has no chat template.",
                code="no_chat_template",
                hint="use /v1/completions, or prompt/completion rows in training",
            )
        return str(self.hf.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=reply))

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        if self._fast is not None:
            return self._fast(list(ids), skip_special_tokens=skip_special)
        return str(self.hf.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False))

    def piece(self, index: int) -> str:
        """``decode`` of one token; of common ones it is known."""
        known = self._pieces.get(index)
        if known is None:
            if len(self._pieces) >= _MOST_PIECES:
                self._pieces.clear()
            known = self._pieces[index] = self.decode([index])
        return known

    def token(self, index: int) -> str:
        """One token's own text form, as logprobs show it."""
        return self.decode([index], skip_special=False)


def _undecorated(hf: Any) -> Callable[..., str] | None:
    """What transformers calls in the end, in a third of the time, where its class adds nothing to that: a step decodes
    twice for each row."""
    from transformers import PreTrainedTokenizerFast as Usual

    own = type(hf)
    if not issubclass(own, Usual) or own.decode is not Usual.decode or own._decode is not Usual._decode:
        return None
    decode: Callable[..., str] = hf.backend_tokenizer.decode
    return decode


def load_tokenizer(folder: Path) -> Tokenizer:
    """Reads ``tokenizer.json`` and its config; runs no code of the folder."""
    reader = _usual() if _is_usual(folder) else _any()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Tokenizer(reader.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True))


def _usual() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast


def _any() -> Any:
    """Imports a second of libraries to find out which class it is."""
    from transformers import AutoTokenizer

    return AutoTokenizer


def _is_usual(folder: Path) -> bool:
    """Whether it is what ``AutoTokenizer`` would come to: a Llama's that is all in its ``tokenizer.json``."""
    try:
        model, told = (json.loads((folder / name).read_text(encoding="utf-8")) for name in _TOLD)
        usual = model["model_type"] == "llama" and told["tokenizer_class"] in _USUAL and "auto_map" not in told
        return bool(usual) and (folder / "tokenizer.json").is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False
