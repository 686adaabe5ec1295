"""TRL's SFTTrainer and umbel make the same of the same rows: packing, loss, and who is learnt in a conversation.

TRL's numbers were recorded by ``oracles/record_trl.py``; the file names its version.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from umbel.adapters.adapter import fresh_adapter
from umbel.adapters.wear import fuse_all
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.contract import Contract
from umbel.training.data.encode import chat_examples, encode_rows
from umbel.training.data.rows import ChatRow, PromptRow
from umbel.training.forward import lay_out, run_pass
from umbel.training.passes import Packing, Seat, pack

TRL = json.loads((Path(__file__).parent / "oracles" / "trl.json").read_text())
GENERATE = Contract(output_head="generate")


@pytest.fixture(scope="module")
def examples(backbone):
    rows = [PromptRow(1, row["prompt"], row["completion"], (row["completion"],)) for row in TRL["rows"]]
    return encode_rows(rows, GENERATE, backbone).examples


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("trl") / "tiny"))


def trl_documents():
    """(ids, spoken) of each document of TRL's packed row: positions start anew where one begins."""
    ids, positions, labels = (np.array(TRL["packed"][name][0]) for name in ("input_ids", "position_ids", "labels"))
    starts = np.flatnonzero(positions == 0)[1:]
    parts = zip(np.split(ids, starts), np.split(labels, starts), strict=True)
    return sorted((part.tolist(), (label != -100).tolist()) for part, label in parts)


def test_rows_are_packed_into_the_documents_that_trl_packs_with_the_same_labels(backbone, examples):
    (part,) = pack([Seat(0, example) for example in examples], Packing(join=True))
    laid = lay_out(part, backbone.device)
    assert sorted(laid.tokens[0].tolist()) == sorted(TRL["packed"]["input_ids"][0])
    assert laid.tokens.shape == (1, len(TRL["packed"]["input_ids"][0]))
    starts = np.flatnonzero(laid.lines.positions[0].numpy() == 0)[1:]
    spoken = np.zeros(laid.tokens.shape[1], dtype=bool)
    spoken[laid.want.numpy() + 1] = True  # a label of TRL's stands at the token itself, ours at the place before it
    ours = zip(np.split(laid.tokens[0].numpy(), starts), np.split(spoken, starts), strict=True)
    assert sorted((ids.tolist(), said.tolist()) for ids, said in ours) == trl_documents()


@torch.no_grad()
@pytest.mark.parametrize("form", ["packed", "padded"])
def test_the_loss_is_trls(backbone, examples, form):
    adapter = fresh_adapter("lora", {}, GENERATE, backbone.shape, backbone=backbone.fingerprint, seed=0)
    loss = mass = 0.0
    for part in pack([Seat(0, example) for example in examples], Packing(join=form == "packed")):
        score = run_pass(backbone, [adapter], fuse_all([adapter]), part)[0]
        loss, mass = loss + float(score.loss), mass + score.mass
    assert loss / mass == pytest.approx(TRL[form]["loss"], abs=1e-5)


def test_the_assistant_is_learnt_where_trl_learns_it(tmp_path):
    folder = tiny_backbone(tmp_path / "tiny")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TRL["template"]}))
    backbone = load_backbone(folder)
    for chat, wanted in zip(TRL["chats"], TRL["masks"], strict=True):
        (example,) = chat_examples(ChatRow(1, tuple(chat["messages"])), backbone)
        length = len(example.ids)
        assert example.ids.tolist() == wanted["input_ids"][:length]
        assert example.spoken.astype(int).tolist() == wanted["spoken"][:length]
        assert not any(wanted["spoken"][length:])  # what follows the last answer is learnt by neither
