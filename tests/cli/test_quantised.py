"""``--quantise`` from training to answering: what is said, what is kept, and what is refused."""

import json
from contextlib import nullcontext

import pytest

from umbel.core.contract import Contract
from umbel.core.manifest import Manifest


@pytest.fixture
def data(stocked, tmp_path) -> str:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"{'good' if i % 2 else 'bad'} thing {i}", "label": "ab"[i % 2]} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def train(run, data, *words):
    return run("train", "--name", "joy", "--data", data, "--task", "classify", "--steps", "3", "--rank", "2", *words)


def test_a_version_tells_the_form_it_was_trained_on_and_answers_on_every_other(run, data, registry, caplog):
    answer = train(run, data, "--quantise", "int8")
    assert answer.code == 0, answer.err
    assert "with int8 linears" in answer.err  # the plan
    version = registry.versions.get("joy:1")
    assert version.contract.quantised == "int8"
    assert "int8 linears" in version.card
    assert "umbel serve --quantise int8 &" in version.card
    assert "--quantise int8\n" in answer.out  # the command to try it
    assert version.backbone == registry.versions.get("mood:1").backbone
    shown = run("adapters", "show", "joy:1").out
    assert "trained on" in shown
    assert "int8 linears" in shown
    (evaluation,) = registry.evaluations.list(name="joy")
    assert evaluation.params["quantised"] == "int8"

    assert run("run", "joy", "good thing", "--quantise", "int8").code == 0
    assert "was trained on" not in caplog.text
    assert run("run", "joy", "good thing").code == 0
    assert "joy:1 was trained on int8 linears and answers on weights as in the checkpoint here" in caplog.text


def test_an_evaluation_keeps_the_form_and_says_where_it_is_another(run, data, registry):
    assert train(run, data).code == 0
    answer = run("eval", "joy", "--data", data, "--quantise", "int4", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["quantised"] == "int4"
    assert registry.evaluations.get(found["evaluation"]).params["quantised"] == "int4"
    assert "trained on weights as in the checkpoint and answers on int4 linears here" in answer.err
    plain = run("eval", "joy", "--data", data, "--json", "--quiet")
    assert "quantised" not in registry.evaluations.get(json.loads(plain.out)["evaluation"]).params
    assert "int4 linears" in run("eval", "joy", "--data", data, "--quantise", "int4").out


def test_the_setting_stands_in_for_the_flag_and_none_undoes_it(run, data, registry, monkeypatch):
    monkeypatch.setenv("UMBEL_QUANTISE", "int8")
    assert train(run, data).code == 0
    assert registry.versions.get("joy:1").contract.quantised == "int8"
    assert registry.runs.get(registry.versions.get("joy:1").run).params["quantise"] == "int8"
    assert train(run, data, "--quantise", "none", "--seed", "1").code == 0
    assert registry.versions.get("joy:2").contract.quantised is None
    monkeypatch.setenv("UMBEL_QUANTISE", "int3")
    answer = run("run", "joy", "good")
    assert answer.code == 2
    assert "int8, int4, nf4" in answer.err


def test_a_queued_run_keeps_its_form_whatever_the_worker_has(run, data, registry, monkeypatch):
    answer = train(run, data, "--quantise", "int4", "--queue", "--json")
    assert answer.code == 0, answer.err
    monkeypatch.setenv("UMBEL_QUANTISE", "int8")
    assert run("worker", "--once", "--quiet").code == 0
    assert registry.versions.get("joy:1").contract.quantised == "int4"


def test_a_run_goes_on_in_the_form_it_began_with(run, data, registry, monkeypatch):
    asked = iter([None, "the test says so"])
    with monkeypatch.context() as patch:
        patch.setattr("umbel.cli.train.interrupt.stopping", lambda **_: nullcontext(lambda: next(asked, None)))
        assert train(run, data, "--quantise", "int8", "--save-every", "0").code == 130
    (waiting,) = [one for one in registry.runs.list().items if one.name == "joy"]
    refused = run("train", "--resume", waiting.id, "--quantise", "int4")
    assert refused.code == 2
    assert "begun with int8 linears" in refused.err
    answer = run("train", "--resume", waiting.id)
    assert answer.code == 0, answer.err
    assert registry.versions.get("joy:1").contract.quantised == "int8"


def test_a_backbone_that_is_trained_itself_is_not_quantised(run, data):
    words = ("--name", "joy", "--data", data, "--task", "classify", "--train", "all")
    answer = run("train", *words, "--quantise", "int8")
    assert answer.code == 2
    assert "--quantise none" in answer.err


def test_tasks_that_train_together_want_one_form(run, data, tmp_path):
    for name, form in (("a", "int8"), ("b", "int4")):
        (tmp_path / f"{name}.toml").write_text(
            f'name = "{name}"\ndata = "{data}"\ntask = "classify"\nsteps = 2\nquantise = "{form}"\n'
        )
    answer = run("train", str(tmp_path / "a.toml"), str(tmp_path / "b.toml"))
    assert answer.code == 2
    assert "a int8, b int4" in answer.err


def test_an_estimate_counts_the_form_and_its_scales(run, stocked):
    def weights(*words):
        answer = run("estimate", "--parameters", "1e9", "--dtype", "bf16", "--length", "32", "--json", *words)
        assert answer.code == 0, answer.err
        return json.loads(answer.out)["weights"]

    plain, forms = weights(), {form: weights("--quantise", form) for form in ("int8", "int4", "nf4")}
    assert plain > forms["int8"] > forms["int4"] > forms["nf4"]
    assert 0.50 < forms["int8"] / plain < 0.56
    assert 0.27 < forms["nf4"] / plain < 0.34  # embeddings and head stay
    refused = run("estimate", "--parameters", "7e9", "--quantise", "int8", "--nproc", "2", "--strategy", "fsdp")
    assert refused.code == 2
    assert "ddp" in refused.err


@pytest.mark.parametrize("words", [("run", "mood", "good"), ("bench", "mood")])
def test_the_form_of_a_servers_backbone_is_not_ours_to_choose(run, words):
    answer = run(*words, "--url", "http://127.0.0.1:9", "--quantise", "int8")
    assert answer.code == 2
    assert "has its own backbone in memory" in answer.err


def test_doctor_examines_the_form_that_a_server_would_have(run, monkeypatch):
    monkeypatch.setenv("UMBEL_QUANTISE", "int8")
    answer = run("doctor", "--json")
    conditions = json.loads(answer.out)
    told = json.dumps(conditions)
    assert "int8 linears" in told


def test_digests_of_versions_that_know_no_form_stay_as_they_were():
    contract = Contract(output_head="generate")
    manifest = Manifest(method="none", config={}, contract=contract, backbone="sha256:" + "0" * 64, files=())
    assert "quantised" not in manifest.model_dump_json()
    assert manifest.digest() == "sha256:7389de9eba16c3329e92a1c5591b6b90ebe0ece84f01a375874a81c9279b1b9a"
    told = manifest.model_copy(update={"contract": contract.model_copy(update={"quantised": "int8"})})
    assert told.digest() != manifest.digest()
