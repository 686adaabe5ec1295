"""What ``--train`` takes: every form chooses what it says, and a wrong one is told before a backbone is loaded."""

import pytest

from umbel.core.errors import ConfigError
from umbel.training.selection import Selection
from umbel.training.task import Task
from umbel.training.taskfile import task_of

LAYERS = 6
NAMES = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    *(
        f"model.layers.{i}.{part}.weight"
        for i in range(LAYERS)
        for part in ("input_layernorm", "self_attn.q_proj", "mlp.down_proj")
    ),
]


def chosen(text: str, **more: bool) -> set[str]:
    selection = Selection(text=text, **more)
    return {name for name in NAMES if selection.chooses(name, LAYERS)}


def layers(names: set[str]) -> set[int]:
    return {int(name.split(".")[2]) for name in names if "layers" in name}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("layers=last:2", {4, 5}), ("layers=first:2", {0, 1}), ("layers=1,3", {1, 3}), ("layers=last:6", set(range(6)))],
)
def test_layers_are_chosen_from_either_end_or_by_number_with_their_norms_and_nothing_else(text, wanted):
    found = chosen(text)
    assert layers(found) == wanted
    assert len(found) == 3 * len(wanted)


def test_a_pattern_chooses_by_a_checkpoints_names():
    assert chosen(r"layers=regex:layers\.[45]\.mlp|embed") == {
        "model.layers.4.mlp.down_proj.weight",
        "model.layers.5.mlp.down_proj.weight",
        "model.embed_tokens.weight",
    }


def test_all_is_everything_and_embeddings_and_norms_can_be_left_out_or_taken_in():
    assert chosen("all") == set(NAMES)
    assert not {"model.embed_tokens.weight", "lm_head.weight"} & chosen("all", embeddings=False)
    assert not [name for name in chosen("all", norms=False) if "norm" in name]
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= chosen("layers=last:1", embeddings=True)
    assert "model.norm.weight" in chosen("layers=last:1", norms=True)
    assert not [name for name in chosen("layers=last:1", norms=False) if "norm" in name]


@pytest.mark.parametrize("text", ["everything", "layers", "layers=", "layers=last:0", "layers=last:x", "layers=1,", ""])
def test_what_is_none_of_the_forms_is_refused_with_them(text):
    with pytest.raises(ConfigError) as caught:
        Selection(text=text)
    assert "layers=last:N" in caught.value.hint


@pytest.mark.parametrize("text", ["layers=last:7", "layers=2,6"])
def test_a_layer_that_the_backbone_has_not_is_told(text):
    with pytest.raises(ConfigError, match="6 layers"):
        chosen(text)


def test_a_broken_pattern_is_told():
    with pytest.raises(ConfigError, match="regular expression"):
        Selection(text="layers=regex:(")


def test_a_head_alone_is_method_none_and_an_mlp_head_has_a_hidden_layer():
    base = {"name": "mood", "data": "x.jsonl", "task": "classify"}
    assert task_of({**base, "train": "head"}).method == "none"
    assert task_of({**base, "train": "head"}).head_depth == 0
    assert task_of({**base, "train": "mlp-head"}).head_depth == 1
    assert task_of({**base, "train": "mlp-head", "head_depth": "3"}).head_depth == 3
    assert Task(**base, train="all").method == "none"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"train": "all", "method": "ia3"}, "method"),
        ({"train": "head", "head_depth": 2}, "train"),
        ({"train": "head", "train_norms": True}, "train"),
        ({"train_embeddings": True}, "train"),
        ({"precision": "fp32"}, "precision"),
        ({"train": "all", "rank": 8}, "rank"),
    ],
)
def test_settings_that_would_be_without_effect_are_refused(wrong, param):
    with pytest.raises(ConfigError) as caught:
        task_of({"name": "mood", "data": "x.jsonl", "task": "classify", **wrong})
    assert caught.value.param == param


def test_a_task_is_read_back_from_its_own_json():
    task = task_of(
        {"name": "mood", "data": "x.jsonl", "task": "classify", "train": "layers=last:1", "precision": "bf16"}
    )
    assert task_of({key: value for key, value in task.as_json().items() if value is not None}) == task
