"""`umbel train --from name:3` continues from a version: its weights, its method, its contract, and it is the parent."""

import json

import pytest

from umbel.adapters.peft_io import load_adapter

WORDS = (("good", "positive"), ("bad", "negative"), ("so so", "neutral"))
ROWS = [{"text": f"{word} number {i}", "label": label} for i in range(30) for word, label in WORDS]


@pytest.fixture
def data(stocked, tmp_path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def version_of(answer) -> str:
    made = json.loads(answer.out)[0]["version"]
    return f"{made['name']}:{made['number']}"


def tensors(registry, tiny, version):
    return load_adapter(registry.fetch(registry.resolve(version).digest), tiny.shape).tensors


def test_the_weights_the_method_and_the_contract_are_the_parents(run, data, registry, tiny):
    answer = run("train", "--from", "mood:3", "--data", data, "--steps", "1", "--lr", "1e-12", "--json")
    assert answer.code == 0, answer.err
    version = version_of(answer)
    made = registry.versions.get(version)
    assert (made.name, made.method, str(made.parent)) == ("mood", "lora", "mood:3")
    assert made.config["method"]["rank"] == 4
    before, after = tensors(registry, tiny, "mood:3"), tensors(registry, tiny, version)
    for name, tensor in before.items():
        assert (after[name] - tensor).abs().max() < 1e-6


def test_training_moves_on_from_there(run, data, registry, tiny):
    answer = run("train", "--from", "mood:3", "--data", data, "--steps", "3", "--lr", "1e-2", "--json")
    assert answer.code == 0, answer.err
    version = version_of(answer)
    before, after = tensors(registry, tiny, "mood:3"), tensors(registry, tiny, version)
    assert any((after[name] - tensor).abs().max() > 1e-4 for name, tensor in before.items())


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--from", "mood:9"), 3, "mood"),
        (("--from", "nobody:1"), 3, "nobody"),
        (("--from", "mood:3", "--rank", "2"), 2, "leave these options to the parent"),
        (("--from", "mood:3", "--template", "x {text}"), 2, "template"),
    ],
)
def test_a_parent_that_does_not_fit_is_refused(words, code, told, run, data):
    answer = run("train", "--data", data, "--steps", "1", *words)
    assert answer.code == code, answer.err
    assert told in answer.err
