"""Text to ids and back: as transformers does it, whichever way is taken."""

import json
import shutil
import subprocess
import sys

import pytest

from umbel.backbone.tiny import tiny_backbone
from umbel.backbone.tokenizer import Tokenizer, load_tokenizer

TEXTS = ["hello", " a  b ", "don't , stop !", "\u00e9t\u00e9 \u6f22\u5b57 \U0001f642", "<eos>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_backbone(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.mark.parametrize("skip", [True, False])
def test_the_short_way_gives_what_transformers_gives(tokenizer, skip):
    assert tokenizer._fast is not None
    for text in TEXTS:
        ids = [*tokenizer.encode(text, special=True), tokenizer.eos]
        for some in (ids, ids[:1], ids[1:], []):
            long_way = tokenizer.hf.decode(some, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(some, skip_special=skip) == long_way


def test_a_class_with_a_way_of_its_own_keeps_it(tokenizer):
    class Own(type(tokenizer.hf)):
        def _decode(self, token_ids, **told):
            return f"own {len(token_ids)}"

    own = Own(tokenizer_object=tokenizer.hf.backend_tokenizer)
    assert Tokenizer(own).decode([1, 2, 3]) == "own 3"


LOADED = """
import sys
from pathlib import Path
from umbel.backbone.tokenizer import load_tokenizer

tokenizer = load_tokenizer(Path(sys.argv[1]))
tokenizer.chat([{"role": "user", "content": "hello"}])
print("auto" if "transformers.models.auto.tokenization_auto" in sys.modules else "usual", len(sys.modules))
"""


def loaded(folder):
    """Which way was taken, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", LOADED, str(folder)], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def told_anew(folder, to, name, **told):
    shutil.copytree(folder, to)
    kept = json.loads((to / name).read_text(encoding="utf-8"))
    kept = {key: value for key, value in (kept | told).items() if value is not None}
    (to / name).write_text(json.dumps(kept), encoding="utf-8")
    return to


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_what_is_all_in_its_file_is_read_as_auto_reads_it_without_its_libraries(folder, tmp_path, name):
    from transformers import AutoTokenizer

    folder = told_anew(folder, tmp_path / "told", "tokenizer_config.json", tokenizer_class=name)
    own, auto = load_tokenizer(folder).hf, AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    assert type(own) is type(auto)
    assert own.init_kwargs.items() <= auto.init_kwargs.items()
    assert own.backend_tokenizer.to_str() == auto.backend_tokenizer.to_str()
    assert loaded(folder) == "usual"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config.json", {"model_type": "mistral"}),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("tokenizer_config.json", {"tokenizer_class": None}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Own", None]}}),
    ],
)
def test_whatever_else_a_folder_tells_auto_reads(folder, tmp_path, name, told):
    assert loaded(told_anew(folder, tmp_path / "told", name, **told)) == "auto"
