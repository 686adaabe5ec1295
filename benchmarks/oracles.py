"""What an adapter should answer, by somebody else's code: PEFT where it has the method, HF with hooks where not.

One unpadded row at a time: PEFT pools prompt methods on padding. AdaptionPrompt's format has no place for an output
head: it is put into PEFT's model by hand, from the file that umbel keeps beside it.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from umbel.core.bitsandbytes import own_kernels_only
from umbel.core.contract import OutputHead

with own_kernels_only():
    import peft

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LABELS = ("a", "b", "c")
_TASKS = {
    OutputHead.GENERATE: ("CAUSAL_LM", AutoModelForCausalLM),
    OutputHead.CLASSIFY: ("SEQ_CLS", AutoModelForSequenceClassification),
    OutputHead.REGRESS: ("SEQ_CLS", AutoModelForSequenceClassification),
    OutputHead.TAG: ("TOKEN_CLS", AutoModelForTokenClassification),
    OutputHead.EMBED: ("FEATURE_EXTRACTION", AutoModel),
}


def peft_config(method: str, head: OutputHead) -> peft.PeftConfig:
    task = _TASKS[head][0]
    if method == "lora":
        return peft.LoraConfig(task_type=task, r=4, lora_alpha=8, target_modules=ALL)
    if method == "llama_adapter":
        return peft.AdaptionPromptConfig(task_type=task, adapter_len=5, adapter_layers=2)
    if method == "prefix":
        return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=5)
    if method == "prompt":
        return peft.PromptTuningConfig(task_type=task, num_virtual_tokens=7)
    if method == "p_tuning":
        return peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=4, encoder_hidden_size=16)
    return peft.IA3Config(
        task_type=task, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )


def noise_of(tensor: str) -> float:
    """Moderate: logits of 17 would leave an absolute tolerance of 2e-5 no headroom in fp32.

    An encoder of several layers multiplies its noise; its biases keep its virtual tokens away from zero.
    """
    return (
        0.02
        if "lora_" in tensor or ("mlp_head" in tensor and "weight" in tensor)
        else 0.5
        if "gate" in tensor.split("_proj")[-1]
        else 0.1
    )


def _outputs(head: OutputHead) -> int:
    return 1 if head is OutputHead.REGRESS else len(LABELS)


class Oracle:
    """Hugging Face's model of a backbone folder, in one dtype, for one method and output head."""

    def __init__(self, folder: Path, method: str, head: OutputHead, dtype: torch.dtype) -> None:
        self.method, self.head, self.dtype = method, head, dtype
        more = {} if head in (OutputHead.GENERATE, OutputHead.EMBED) else {"num_labels": _outputs(head)}
        torch.manual_seed(0)  # PEFT's first A and HF's fresh output heads
        self.model: Any = _TASKS[head][1].from_pretrained(str(folder), dtype=dtype, **more)
        self.virtual = 0

    def noisy(self, folder: Path, start: Path | None = None) -> "Oracle":
        """Wraps the model in a fresh PEFT adapter, or in that of ``start``, with noise on all its tensors; saves it."""
        if start is None:
            self.model = peft.get_peft_model(self.model, peft_config(self.method, self.head)).eval()
        else:
            self.model = peft.PeftModel.from_pretrained(self.model, str(start)).eval()
        generator = torch.Generator().manual_seed(5)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad or (start is not None and "prompt_encoder" in name):
                noise = torch.randn(parameter.shape, generator=generator) * noise_of(name)
                parameter.data = parameter.data + noise.to(parameter.dtype)
        self._count_virtual()
        # told not to save embeddings, PEFT does not ask the hub for the backbone's vocabulary
        self.model.save_pretrained(str(folder), save_embedding_layers=False)
        return self

    def loaded(self, folder: Path) -> "Oracle":
        """Wears an adapter that umbel wrote to ``folder``."""
        if self.method in ("none", "bottleneck"):
            return self._hooked(folder)
        config = peft.PeftConfig.from_pretrained(str(folder))
        if self.method == "llama_adapter" and self.head is OutputHead.TAG:
            config.task_type = None  # PEFT's token classifier raises for AdaptionPrompt; the plain wrapper does not
        self.model = peft.PeftModel.from_pretrained(self.model, str(folder), config=config).eval()
        if (folder / "umbel_extra.safetensors").is_file():
            self._score(load_file(folder / "umbel_extra.safetensors"))
        self._count_virtual()
        return self

    @torch.no_grad()
    def answer(self, text: Tensor) -> Tensor:
        """Logits [T,V], [L], [1] or [T,L], or an embedding [H]; fp32 at least."""
        mask = torch.ones(1, len(text), dtype=torch.long)
        told = self.model(input_ids=text[None], attention_mask=mask)
        if self.head is OutputHead.EMBED:
            return _embedding(told.last_hidden_state[0, self.virtual :])
        logits = told.logits[0]
        return _wide(logits if self.head in (OutputHead.CLASSIFY, OutputHead.REGRESS) else logits[self.virtual :])

    def _score(self, tensors: dict[str, Tensor]) -> None:
        for name in ("weight", "bias"):
            if key := next((key for key in tensors if key.endswith(f"score.{name}")), None):
                getattr(self.model.score, name).data = tensors[key].to(self.dtype)

    def _count_virtual(self) -> None:
        kinds = {"prompt", "p_tuning"}
        self.virtual = self.model.active_peft_config.num_virtual_tokens if self.method in kinds else 0

    def _hooked(self, folder: Path) -> "Oracle":
        """Methods that PEFT does not have: HF's own modules, with the formula as a hook."""
        tensors = load_file(folder / "adapter_model.safetensors")
        self.model.eval()
        self._score(tensors)
        if self.method == "bottleneck":
            body = self.model if self.head is OutputHead.EMBED else self.model.model
            for index, layer in enumerate(body.layers):
                own = {
                    key.split(".bottleneck.")[1]: t for key, t in tensors.items() if f"layers.{index}.bottleneck" in key
                }
                layer.mlp.register_forward_hook(_after_mlp({key: t.to(self.dtype) for key, t in own.items()}))
        return self


def _after_mlp(own: dict[str, Tensor]) -> Any:
    def hook(module: nn.Module, inputs: object, h: Tensor) -> Tensor:
        inner = F.relu(F.linear(h, own["down.weight"], own["down.bias"]))
        return h + F.linear(inner, own["up.weight"], own["up.bias"])

    return hook


def _embedding(hidden_TH: Tensor) -> Tensor:
    mean = _wide(hidden_TH).mean(0)
    return mean / mean.norm()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
