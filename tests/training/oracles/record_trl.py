"""Records what TRL's SFTTrainer makes of tiny inputs: packed rows, their loss, and the masks of conversations.

    pip install trl datasets && python tests/training/oracles/record_trl.py

writes ``trl.json`` beside this file. ``tests/training/test_trl.py`` holds our own numbers against it, so TRL need
not be installed to run the tests.
"""

import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from umbel.backbone.tiny import tiny_backbone

Hasher.hash = classmethod(lambda cls, value: uuid.uuid4().hex)  # it names cache files; datasets 5.2 cannot hash a table
HERE = Path(__file__).parent
ROWS = [
    {"prompt": "ab ->", "completion": " ba"},
    {"prompt": "a longer prompt ->", "completion": " with a longer answer"},
    {"prompt": "x", "completion": "y"},
    {"prompt": "one two ->", "completion": " two one"},
]
TURNS = [
    [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "So long")],
    [("user", "2+2"), ("assistant", "4\n")],
]
CHATS = [{"messages": [{"role": role, "content": content} for role, content in turns]} for turns in TURNS]
MARKED = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<eos>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<eos>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Marks what the assistant says, as TRL wants it; without the marks it is ours."""
ROOM = 64
"""Places of a packed sequence."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tiny = tiny_backbone(Path(folder) / "tiny")
        found = {
            "made_with": {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
            "rows": ROWS,
            "packed": spoken(tiny, packing=True),
            "padded": spoken(tiny, packing=False),
            "chats": CHATS,
            "template": MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", ""),
            "masks": masks(tiny),
        }
    (HERE / "trl.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def trainer_of(tiny: Path, rows: list[dict[str, Any]], template: str | None = None, **options: Any) -> SFTTrainer:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    if template is not None:
        tokenizer.chat_template = template
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    config = SFTConfig(
        output_dir=str(tiny / "out"), use_cpu=True, bf16=False, report_to=[], shuffle_dataset=False,
        per_device_train_batch_size=len(rows), **options,
    )  # fmt: skip
    return SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def spoken(tiny: Path, *, packing: bool) -> dict[str, Any]:
    """The batch that TRL makes of ``ROWS`` and its loss: the mean over the completions' tokens."""
    trainer = trainer_of(tiny, ROWS, packing=packing, max_length=ROOM, completion_only_loss=True)
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model, dict(batch)))
    kept = ("input_ids", "labels", "position_ids", "attention_mask")
    return {"loss": loss, **{name: batch[name].tolist() for name in kept if name in batch}}


def masks(tiny: Path) -> list[dict[str, list[int]]]:
    """Token ids of each conversation, and which of them TRL trains on."""
    trainer = trainer_of(tiny, CHATS, MARKED, max_length=None, assistant_only_loss=True)
    rows = [trainer.data_collator([row]) for row in trainer.train_dataset]
    return [
        {"input_ids": row["input_ids"][0].tolist(), "spoken": (row["labels"][0] != -100).int().tolist()} for row in rows
    ]


if __name__ == "__main__":
    main()
