"""Tasks from files and flags: what is known, what is wrong, and what is nearest to it."""

from types import SimpleNamespace

import pytest

from umbel.adapters import catalog
from umbel.core.contract import OutputHead
from umbel.core.errors import ConfigError, NotFound, UsageError
from umbel.training import taskfile
from umbel.training.data.rows import LabelledRow
from umbel.training.data.source import Splits
from umbel.training.prepared import contract_of
from umbel.training.task import Task
from umbel.training.taskfile import known_options, method_options, read_task, task_of

LEAST = {"name": "mood", "data": "rows.jsonl", "task": "classify"}


def test_a_task_file_s_keys_are_the_flags_the_method_s_own_among_them(tmp_path):
    path = tmp_path / "mood.toml"
    path.write_text('name = "mood"\ndata = "x"\ntask = "classify"\nrank = 4\ntargets = ["q_proj"]\nbatch_size = 8\n')
    task = read_task(path, {"lr": "1e-3", "labels": "no, yes", "dropout": "0.1"})
    assert task.options == {"rank": 4, "targets": ("q_proj",), "dropout": 0.1}
    assert (task.batch_size, task.lr, task.labels) == (8, 1e-3, ("no", "yes"))
    assert task.output_head is OutputHead.CLASSIFY


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("rnak", "rank"), ("epoch", "epochs"), ("learning_rat", "lr"), ("xyzzy", None), ("batchsize", "batch_size")],
)
def test_an_unknown_key_is_an_error_with_the_nearest_known_one(key, nearest):
    with pytest.raises(ConfigError) as caught:
        task_of({**LEAST, key: 1}, where="mood.toml")
    assert caught.value.code == "unknown_option"
    assert "mood.toml" in caught.value.message
    assert key in caught.value.message
    assert (f"did you mean {nearest!r}" if nearest else "docs/training.md tells all ") in caught.value.hint


@pytest.mark.parametrize("flag", ["rank", "r"])
def test_another_method_s_flag_says_whose_it_is(flag):
    with pytest.raises(ConfigError) as caught:
        task_of({**LEAST, "method": "prefix"}, flags={flag: "4"})
    assert "--rank is of " in caught.value.hint
    assert "lora" in caught.value.hint
    assert "prefix has --" in caught.value.hint


@pytest.mark.parametrize(("key", "given", "near"), [("method", "lorra", "lora"), ("task", "clasify", "classify")])
def test_a_misspelt_method_or_head_is_answered_with_the_right_one(key, given, near):
    with pytest.raises(ConfigError) as caught:
        task_of({**LEAST, key: given})
    assert caught.value.hint == f"did you mean {near}?"


def test_another_method_s_option_is_unknown():
    with pytest.raises(ConfigError, match="'rank' for method 'prefix'"):
        task_of({**LEAST, "method": "prefix", "rank": 8})


def test_all_that_a_task_lacks_is_told_at_once():
    with pytest.raises(ConfigError, match="does not say the task's name and data and task") as lacking:
        task_of({})
    assert lacking.value.hint == "add --name mood --data rows.jsonl --task classify"


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"lr": 0}, {"steps": 0}, {"warmup": 2}])
def test_a_number_that_cannot_be_is_told_with_its_fix(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name} must be") as refused:
        task_of({**LEAST, **wrong})
    assert refused.value.param == name
    assert f"leave {name} out" in refused.value.hint


@pytest.mark.parametrize("missing", ["name", "data", "task"])
def test_a_task_without_name_data_or_head_is_told_what_it_lacks(missing):
    with pytest.raises(ConfigError, match=f"--{missing}"):
        task_of({key: value for key, value in LEAST.items() if key != missing})


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"batch_size": "many"},
        {"lr": 0},
        {"lr": "fast"},
        {"warmup": 1.5},
        {"abstain_below": 1.5},
        {"task": "regress", "abstain_below": 0.5},
        {"validation_fraction": 0.9},
        {"decay": "sudden"},
        {"rank": 0},
        {"task": "dance"},
        {"task": "embed", "batch_size": 1},
        {"task": "embed", "temperature": 0},
        {"embedding_size": 8},
        {"method": "magic"},
        {"name": "Not A Name"},
        {"patience": 0},
        {"truncation_side": "middle"},
    ],
)
def test_wrong_values_are_told_before_anything_is_loaded(wrong):
    with pytest.raises(UsageError):
        task_of({**LEAST, **wrong})


def test_the_bound_below_which_a_classifier_abstains_is_part_of_its_contract():
    rows = [LabelledRow(1, "x", ("no",), False), LabelledRow(2, "y", ("yes",), False)]
    splits = Splits(train=rows, validation=[], test=[], digest="sha256:0", name="rows")
    backbone = SimpleNamespace(config=SimpleNamespace(max_positions=512), quantised=None)
    assert contract_of(task_of({**LEAST, "abstain_below": "0.8"}), splits, backbone).abstain_below == 0.8
    assert contract_of(task_of(LEAST), splits, backbone).abstain_below == 0.0


def test_a_task_survives_json():
    task = task_of({**LEAST, "rank": 4, "targets": "q_proj,v_proj", "labels": "a,b", "eval_every": 3})
    again = task_of({key: value for key, value in task.as_json().items() if value is not None})
    assert again == task


def test_paths_in_a_task_file_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "rows.jsonl").write_text("{}")
    path = tmp_path / "here" / "mood.toml"
    path.write_text('name = "mood"\ndata = "rows.jsonl"\ntask = "classify"\n')
    monkeypatch.chdir(tmp_path)
    assert read_task(path).data == str(tmp_path / "here" / "rows.jsonl")


def test_broken_toml_and_a_missing_file_are_told(tmp_path):
    (tmp_path / "bad.toml").write_text("name = \n")
    with pytest.raises(ConfigError) as caught:
        read_task(tmp_path / "bad.toml")
    assert caught.value.code == "invalid_toml"
    with pytest.raises(NotFound) as missing:
        read_task(tmp_path / "none.toml")
    assert missing.value.code == "task_file_not_found"
    assert missing.value.hint


ALL = f"docs/training.md tells all {len(known_options()) + len(method_options('lora'))}"


@pytest.mark.parametrize(
    ("flags", "told", "hint"),
    [
        ({"step": "12"}, "there is no flag --step for method 'lora'.", "did you mean --steps?"),
        ({"batch_sise": "12"}, "there is no flag --batch-sise for method 'lora'.", "did you mean --batch-size?"),
        ({"r": "8"}, "there is no flag --r for method 'lora'.", "did you mean --rank?"),
        ({"output_head": "tag"}, "there is no flag --output-head for method 'lora'.", "did you mean --task?"),
        ({"output_dir": "x"}, "there is no flag --output-dir for method 'lora'.", ALL),
        ({"xyzzy": "1"}, "there is no flag --xyzzy for method 'lora'.", ALL),
        ({"rank": "many"}, "--rank many: it should be", None),
    ],
)
def test_a_wrong_flag_is_told_as_a_flag_and_not_laid_to_the_file(tmp_path, flags, told, hint):
    path = tmp_path / "mood.toml"
    path.write_text('name = "mood"\ndata = "tweets"\ntask = "classify"\n')
    for wrong in (lambda: read_task(path, flags), lambda: task_of(LEAST, flags=flags)):
        with pytest.raises(ConfigError) as caught:
            wrong()
        assert caught.value.message.startswith(told)
        assert caught.value.hint == hint


def test_no_method_hides_an_option_of_the_task():
    for method in catalog.methods():
        assert not known_options().keys() & method_options(method).keys(), method


def test_the_head_may_be_named_by_its_text():
    assert Task(name="x", data="y", task="regress").output_head is OutputHead.REGRESS


def test_what_others_call_an_option_leads_to_one_that_there_is():
    ours = known_options().keys() | {name for method in catalog.methods() for name in method_options(method)}
    assert not ours & taskfile._ELSEWHERE.keys()
    assert set(taskfile._ELSEWHERE.values()) <= ours
