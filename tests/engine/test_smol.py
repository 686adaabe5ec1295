"""The real backbone: 64 greedy tokens of rows in one batch are Hugging Face's, one unpadded row at a time."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from umbel.backbone.loading import load_backbone
from umbel.engine import Engine, GenerateRequest

PROMPTS = ["Name three colours.", "The capital of France is", "def add(a, b):\n"]


class Nothing:
    """A source without adapters."""

    def resolve(self, model):
        raise LookupError(model)

    fetch = resolve


@pytest.mark.smol
@pytest.mark.parametrize("packed", [False, True])
def test_64_greedy_tokens_of_smollm2_are_hugging_faces(packed):
    folder = Path(os.environ["UMBEL_HOME"]) / "backbones" / "smollm2-135m-instruct"
    backbone = load_backbone(folder, dtype="fp32", packed=packed)
    prompts = [backbone.tokenizer.chat([{"role": "user", "content": PROMPTS[0]}])]
    prompts += [backbone.tokenizer.encode(text) for text in PROMPTS[1:]]
    engine = Engine(backbone, Nothing(), kv_bytes=1 << 28, adapter_bytes=1 << 20, max_length=256, step_tokens=24)
    handles = [engine.submit(GenerateRequest(tokens=tuple(ids), max_tokens=64, min_tokens=64)) for ids in prompts]
    while engine.step():
        pass
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    for ids, handle in zip(prompts, handles, strict=True):
        tokens = torch.tensor([ids])
        with torch.no_grad():
            told = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=64, min_new_tokens=64, do_sample=False
            )
        assert handle.result().ids == told[0, len(ids) :].tolist()
    engine.close()
