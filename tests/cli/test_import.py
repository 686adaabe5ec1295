"""``umbel adapters import, publish, export``: between folders and the registry."""

import json
import shutil
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from umbel.adapters.peft_io import export_files
from umbel.backbone.tiny import tiny_backbone
from umbel.core.contract import Contract
from umbel.core.manifest import UMBEL_FILE, WEIGHTS_FILE

LABELS = "negative,neutral,positive"


@pytest.fixture
def folder(made, tmp_path):
    """folder(adapter, own=): as umbel exports it, or without umbel.json as PEFT saves it."""

    def write(adapter=None, *, own=False):
        target = tmp_path / "folder"
        target.mkdir()
        for name, data in export_files(adapter or made(9), backbone_name="somewhere/else").items():
            if own or name != UMBEL_FILE:
                (target / name).write_bytes(data)
        return target

    return write


def test_a_peft_folder_becomes_the_next_version_and_takes_no_traffic(run, registry, folder, made):
    source = folder(made(9))
    answer = run("adapters", "import", str(source), "--name", "mood", "--labels", LABELS, "--tag", "from=peft")
    assert answer.code == 0, answer.err
    assert "umbel promote mood:4" in answer.err
    version = registry.versions.get("mood:4")
    assert version.contract.labels == ("negative", "neutral", "positive")
    assert version.n_params == made(9).num_parameters
    assert registry.resolve("mood").number == 1
    assert registry.tags.get("mood")["from"] == "peft"
    stored = load_file(registry.fetch(version.digest).folder / WEIGHTS_FILE)
    for name, tensor in load_file(source / WEIGHTS_FILE).items():
        assert stored[name].equal(tensor)


def test_the_first_version_of_a_name_is_its_champion(run, folder):
    answer = run("adapters", "import", str(folder()), "--name", "fresh", "--labels", LABELS)
    assert "champion" in answer.out
    assert answer.err == ""


def test_other_rows_than_labels_are_told_as_that(run, folder):
    answer = run("adapters", "import", str(folder()), "--name", "fresh", "--labels", "bad,good")
    assert answer.code == 2
    assert "score.weight has 3 rows, 2 labels are named: bad, good." in answer.err
    assert "--labels A,B,..." in answer.err
    assert "another backbone" not in answer.err


def test_the_same_adapter_again_is_the_same_version(run, folder):
    words = ["adapters", "import", str(folder()), "--name", "mood", "--labels", LABELS]
    assert "mood:4\n" in run(*words).out
    assert "mood:4 (published before: the same bytes)" in run(*words).out


def test_an_export_is_published_as_the_version_it_was(run, registry, tmp_path):
    target = tmp_path / "out"
    assert run("adapters", "export", "mood", str(target)).out == f"mood:1 in {target}\n"
    assert (target / "README.md").read_text().startswith("---\nbase_model: tiny")
    answer = run("adapters", "publish", str(target), "--name", "copy")
    assert answer.code == 0, answer.err
    first, copy = registry.versions.get("mood:1"), registry.versions.get("copy:1")
    assert (copy.digest, copy.card) == (first.digest, first.card)


def test_figures_travel_with_an_export_as_reported_and_sort_the_list(run, registry, tmp_path):
    target = tmp_path / "out"
    run("adapters", "export", "mood:2", str(target))
    answer = run("adapters", "publish", str(target), "--name", "copy")
    assert "accuracy 0.81" in answer.out
    assert registry.versions.get("copy:1").metrics == {"accuracy": 0.81}
    told = run("adapters", "show", "copy:1").out
    assert "reported" in told
    assert "not measured here" in told
    listed = run("adapters", "list", "--sort", "metric:accuracy", "--desc").rows
    assert [row[0] for row in listed[:2]] == ["copy", "tone"]
    assert listed[0][5] == "accuracy 0.81 (reported)"
    assert json.loads(run("adapters", "show", "copy:1", "--json").out)["reported"]


def test_figures_that_were_measured_here_stay_so_where_the_same_bytes_are_imported_again(run, registry, tmp_path, made):
    started = registry.start(name="own", params={}, seed=1)
    own = made(9)
    registry.publish(
        export_files(own, backbone_name="tiny"),
        name="own",
        method="lora",
        config=own.config,
        contract=own.contract,
        backbone=own.backbone,
        metrics={"accuracy": 0.9},
        run=started,
    )
    run("adapters", "export", "own:1", str(tmp_path / "out"))
    again = run("adapters", "publish", str(tmp_path / "out"), "--name", "own").out
    assert "metrics      accuracy 0.9\n" in again
    assert "reported" not in again
    shown = run("adapters", "show", "own:1")
    assert "came by      training here\n" in shown.out
    assert not json.loads(run("adapters", "show", "own:1", "--json").out)["reported"]
    assert "came by      import or upload" in run("adapters", "show", "mood:2").out
    assert [row[5] for row in run("adapters", "list", "--search", "own").rows] == ["accuracy 0.9"]


def test_figures_of_other_bytes_are_left_out_and_broken_ones_are_refused(run, registry, tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    run("adapters", "export", "mood:2", str(first))
    run("adapters", "export", "mood:3", str(second))
    (second / "metrics.json").write_bytes((first / "metrics.json").read_bytes())
    answer = run("adapters", "publish", str(second), "--name", "copy")
    assert answer.code == 0
    assert "is of other bytes" in answer.err
    assert registry.versions.get("copy:1").metrics == {}
    (first / "metrics.json").write_text('{"accuracy": 1}')
    answer = run("adapters", "publish", str(first), "--name", "third")
    assert answer.code == 2
    assert "metrics.json is not what umbel exports" in answer.err


def test_the_backbone_is_the_one_that_umbel_json_names(run, registry, folder, tmp_path):
    run("pull", "backbone", str(tiny_backbone(tmp_path / "other", seed=7)))
    answer = run("adapters", "publish", str(folder(own=True)), "--name", "bound")
    assert answer.code == 0, answer.err
    assert registry.adapters.get("bound").backbone == registry.backbones.get("tiny").fingerprint


def test_of_two_backbones_none_is_guessed(run, folder, tmp_path):
    run("pull", "backbone", str(tiny_backbone(tmp_path / "other", seed=7)))
    words = ["adapters", "import", str(folder()), "--name", "new", "--labels", LABELS]
    answer = run(*words)
    assert answer.code == 2
    assert "other, tiny" in answer.err
    assert run(*words, "--backbone", "tiny").code == 0


def test_without_a_backbone_it_says_how_to_get_one(run, registry, folder):
    for name in ("mood", "tone"):
        registry.adapters.remove(name)
    registry.backbones.remove("tiny")
    answer = run("adapters", "import", str(folder()), "--name", "new", "--labels", LABELS)
    assert answer.code == 3
    assert "umbel pull backbone" in answer.err


def test_an_adapter_of_another_backbone_is_refused(run, folder, tmp_path):
    run("pull", "backbone", str(tiny_backbone(tmp_path / "other", seed=7)))
    answer = run("adapters", "publish", str(folder(own=True)), "--name", "new", "--backbone", "other")
    assert answer.code == 2
    assert "bound to backbone sha256:" in answer.err


def test_an_adapter_without_effect_is_refused_unless_allowed(run, folder, made):
    generate = Contract(output_head="generate")
    source = str(folder(made(1, noise=0.0, contract=generate)))
    answer = run("adapters", "import", source, "--name", "noop")
    assert answer.code == 2
    assert "--allow-noop" in answer.err
    assert run("adapters", "import", source, "--name", "noop", "--allow-noop").code == 0


def test_a_folder_of_peft_is_not_published_but_imported(run, folder):
    answer = run("adapters", "publish", str(folder()), "--name", "mood")
    assert answer.code == 2
    assert "umbel adapters import" in answer.err


def test_labels_that_contradict_the_folder_are_refused(run, folder):
    answer = run("adapters", "import", str(folder(own=True)), "--name", "mood", "--labels", "a,b,c")
    assert answer.code == 2
    assert "leave --labels out" in answer.err


@pytest.mark.parametrize(
    ("change", "words", "code", "told"),
    [
        (lambda folder: None, [], 2, "--labels"),
        (lambda folder: None, ["--labels", "a,b"], 2, "3 rows"),
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), ["--labels", LABELS], 2, "missing"),
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"no"), ["--labels", LABELS], 2, "truncated"),
        (lambda folder: shutil.rmtree(folder), ["--labels", LABELS], 3, "no folder"),
        (lambda folder: None, ["--labels", LABELS, "--backbone", "nope"], 3, "no backbone 'nope'"),
        (lambda folder: None, ["--labels", LABELS, "--tag", "x"], 2, "key=value"),
    ],
)
def test_what_cannot_be_trusted_leaves_nothing_behind(run, registry, folder, change, words, code, told):
    source = folder()
    change(source)
    answer = run("adapters", "import", str(source), "--name", "bad", *words)
    assert answer.code == code, answer.err
    assert told in answer.err
    assert "bad" not in [adapter.name for adapter in registry.adapters.list().items]


def test_names_that_are_taken_or_wrong_are_refused(run, folder):
    words = ["adapters", "import", str(folder()), "--labels", LABELS, "--name"]
    assert run(*words, "tiny").code == 4
    assert run(*words, "No Good").code == 2


def test_an_export_never_writes_into_a_folder_with_files(run, tmp_path):
    (tmp_path / "file").touch()
    assert run("adapters", "export", "mood", str(tmp_path)).code == 4


def test_json_of_an_import_is_the_version(run, folder):
    answer = run("adapters", "import", str(folder()), "--name", "mood", "--labels", LABELS, "--json")
    assert json.loads(answer.out)["number"] == 4
    assert answer.err == ""


@pytest.fixture
def loha(tiny, tmp_path):
    """A LoHa folder as PEFT saves it, trained on the tiny backbone."""
    target = tmp_path / "loha"
    base = AutoModelForCausalLM.from_pretrained(str(tiny.folder))
    config = peft.LoHaConfig(r=2, alpha=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(str(target))
    return target


def test_another_method_of_peft_becomes_lora_and_what_was_lost_is_told(run, registry, loha):
    answer = run("adapters", "import", str(loha), "--name", "rare", "--as-lora", "--max-error", "0.001")
    assert answer.code == 0, answer.err
    assert "LOHA as LoRA of rank 4" in answer.out
    assert "Logits of the probe texts" in answer.out
    assert registry.versions.get("rare:1").method == "lora"
    assert "made from PEFT's LOHA" in run("adapters", "card", "rare:1").out


def test_in_json_a_conversion_tells_the_version_alone(run, loha):
    answer = run("adapters", "import", str(loha), "--name", "rare", "--as-lora", "--json")
    assert json.loads(answer.out)["method"] == "lora"


def test_a_rank_that_loses_too_much_is_refused_with_the_one_that_would_do(run, loha):
    answer = run("adapters", "import", str(loha), "--name", "rare", "--as-lora", "--rank", "1", "--max-error", "0.001")
    assert answer.code == 2
    assert "--rank 4 keeps the bound" in answer.err


def test_without_as_lora_the_hint_names_it_and_its_options_are_refused(run, loha):
    plain = run("adapters", "import", str(loha), "--name", "rare")
    assert (plain.code, "--as-lora" in plain.err) == (2, True)
    alone = run("adapters", "import", str(loha), "--name", "rare", "--rank", "4")
    assert (alone.code, "--as-lora" in alone.err) == (2, True)


def test_a_folder_of_umbels_own_is_not_converted(run, folder):
    answer = run("adapters", "import", str(folder(own=True)), "--name", "mood", "--as-lora")
    assert (answer.code, "leave --as-lora out" in answer.err) == (2, True)


def test_lora_on_the_embeddings_comes_in_without_pefts_copy_of_them(run, registry, tiny, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(str(tiny.folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM")
        model = peft.get_peft_model(base, config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1
        model.save_pretrained(str(tmp_path / "embeddings"))
    answer = run("adapters", "import", str(tmp_path / "embeddings"), "--name", "embeddings")
    assert answer.code == 0, answer.err
    stored = load_file(registry.fetch(registry.resolve("embeddings").digest).folder / WEIGHTS_FILE)
    assert "base_model.model.model.embed_tokens.lora_embedding_A" in stored
    assert not any("base_layer" in name for name in stored)
