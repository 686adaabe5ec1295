"""A GGUF file of a Llama becomes a plain Hugging Face folder, once.

transformers reads and dequantises the file. It refuses to save what it loaded that way, so the tensors move into
a fresh model without a quantization entry. They are stored in bf16, though dequantising gives fp32: half the
bytes, and bf16 is what the backbone is served in; fp32 would only keep the rounding of 4-bit blocks more exactly.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from umbel.core.errors import Unavailable

WEIGHTS = "model.safetensors"


def convert(gguf: Path, into: Path) -> None:
    """Writes config, weights, tokenizer, chat template and generation defaults of ``gguf`` into ``into``.

    Raises Unavailable (``missing_extra``) without transformers or gguf, and (``conversion_failed``) where the
    tokenizer that was written does not read back as it was.
    """
    _need_libraries()
    with _quiet():
        model = _load(gguf)
        model.save_pretrained(into)
        tokenizer = _load_tokenizer(gguf, model.config.max_position_embeddings)
        tokenizer.save_pretrained(into)
        _check_tokenizer(tokenizer, into)
    (into / WEIGHTS).chmod(0o644)  # safetensors writes 0600, which a server under another user could not read


def _load(gguf: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig, LlamaConfig, LlamaForCausalLM

    # fp32 and explicit: where a matmul kernel is installed, transformers would keep the blocks packed
    loaded = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        local_files_only=True,
    )
    config = LlamaConfig(**_plain(loaded.config.to_dict()))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in loaded.state_dict().items()}
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    dropped = ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version", "architectures")
    kept = {key: value for key, value in config.items() if key not in dropped}
    # GGUF keeps fp32: 9.99999974e-06 is the 1e-5 of the original, and only 1e-5 is right in float64 as well
    return kept | {"rms_norm_eps": float(f"{kept['rms_norm_eps']:.7g}"), "dtype": "bfloat16"}


def _load_tokenizer(gguf: Path, length: int) -> Any:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
    tokenizer.model_max_length = length
    if _pre_tokenizer(gguf) == "smollm":
        # transformers maps every GPT-2 style file to ByteLevel alone; this one splits digits first, which shows
        # in runs of spaces before a number
        split = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        tokenizer.backend_tokenizer.pre_tokenizer = split
    return tokenizer


def _pre_tokenizer(gguf: Path) -> str | None:
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    return str(field.contents()) if field else None


def _check_tokenizer(tokenizer: Any, folder: Path) -> None:
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    probe = "Grüße, it's 3  10 pm.\n\n\tx = {'a': 1}  <|im_end|>"
    same = all(getattr(again, name) == getattr(tokenizer, name) for name in _CARRIED)
    if (
        not same
        or again(probe).input_ids != tokenizer(probe).input_ids
        or again.decode(again(probe).input_ids) != probe
    ):
        raise Unavailable(
            f"the tokenizer written to {folder} does not read back as it was.",
            code="conversion_failed",
            hint="install the transformers version of constraints.txt and pull again",
        )


_CARRIED = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template", "model_max_length")


def _need_libraries() -> None:
    missing = [name for name in ("torch", "transformers", "gguf") if find_spec(name) is None]
    if missing:
        raise Unavailable(
            f"reading a GGUF needs {', '.join(missing)}.", code="missing_extra", hint="pip install 'umbel[torch]'"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars, advice or warnings of transformers inside; its settings come back afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # the bar of the dequantiser heeds neither setting and writes to stderr
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
