"""From a trained adapter to a version: the files, the card, and what is refused."""

from dataclasses import replace

import pytest

from umbel.core.errors import AdapterRefused
from umbel.registry import Registry
from umbel.training import fit
from umbel.training.card import Against, Effects, Finding, card_of, try_commands
from umbel.training.publish import publish

BETTER = Against(
    name="it", value=0.5, difference=0.3, low=0.1, high=0.5, p_value=0.01, winner="mood", sentence="against it: better"
)
EFFECTS = Effects(
    forgetting=0.125, perplexity=45.0, perplexity_off=40.0, general=0.5, general_off=0.75, bytes=1234,
    gate="Gate `accuracy>=0.8`: passed.",
)  # fmt: skip


@pytest.fixture
def registry(settings):
    with Registry.open(settings) as opened:
        yield opened


@pytest.mark.parametrize("name", ["speech", "mood", "topic", "names", "height"])
def test_what_is_published_is_what_was_trained(tasks, backbone, settings, registry, name):
    from umbel.adapters.peft_io import load_adapter

    (trained,) = fit(backbone, [tasks[name]], settings=settings, run_log=registry)
    version = publish(registry, trained, backbone)
    again = load_adapter(registry.fetch(version.digest), backbone.shape)
    assert {key: tensor.equal(trained.adapter.tensors[key]) for key, tensor in again.tensors.items()} == dict.fromkeys(
        trained.adapter.tensors, True
    )
    assert again.contract == trained.adapter.contract
    assert (version.run, version.seed, version.dataset) == (
        trained.run,
        tasks[name].seed,
        trained.prepared.splits.digest,
    )
    assert version.metrics["validation_loss"] == trained.best.loss


def test_the_same_training_twice_is_one_version(tasks, backbone, settings, registry):
    versions = [publish(registry, fit(backbone, [tasks["mood"]], settings=settings)[0], backbone) for _ in range(2)]
    assert versions[0].ref == versions[1].ref


def test_a_training_that_changed_nothing_is_refused(tasks, backbone, settings, registry):
    idle = replace(tasks["speech"], lr=1e-30, steps=1)
    (trained,) = fit(backbone, [idle], settings=settings)
    for name, tensor in trained.adapter.tensors.items():
        if "lora_B" in name:
            tensor.zero_()
    with pytest.raises(AdapterRefused):
        publish(registry, trained, backbone)
    assert publish(registry, trained, backbone, allow_noop=True).number == 1


def test_the_card_says_what_it_is_what_it_was_trained_on_and_how_good_it_is(tasks, backbone, settings):
    task = replace(tasks["mood"], description="How it feels.", licence="CC-BY-4.0")
    (trained,) = fit(backbone, [task], settings=settings)
    finding = Finding(
        metric="accuracy", value=0.8125, low=0.7, high=0.9, rows=64, baselines={'always "glad"': 0.5},
        against=[BETTER], notes=["not compared with mood:1: its labels are a, b"],
        others={"macro_f1": 0.8, "calibration_error": 0.0321, "brier": 0.3},
        calibration=[(0.6, 0.7, 12, 0.65, 0.75)],
    )  # fmt: skip
    card = card_of(trained, backbone="tiny", licence="Apache-2.0", finding=finding, effects=EFFECTS)
    front = card.split("---")[1]
    for line in ("base_model: tiny", "library_name: peft", "license: cc-by-4.0", "tags: [umbel, lora, classify]"):
        assert line in front
    for part in (
        "# mood",
        "How it feels.",
        "0.8125 (95 % CI 0.7 to 0.9)",
        '| always "glad" | 0.5 |',
        "glad 1",
        "| seed | 0 |",
        "- against it: better",
        "- not compared with mood:1: its labels are a, b",
        "Expected calibration error 0.0321, Brier score 0.3.",
        "| 0.60 to 0.70 | 12 | 0.650 | 0.750 |",
        "Forgetting while it is on: +12.5% perplexity.",
        f"(sha256 {trained.frozen})",
        "| general questions right | 75.0% | 50.0% |",
        "Memory while it is served: 1.2 kB.",
        "Gate `accuracy>=0.8`: passed.",
        "| licence of the backbone | Apache-2.0 |",
    ):
        assert part in card
    assert trained.prepared.splits.digest in card
    assert card == card_of(trained, backbone="tiny", licence="Apache-2.0", finding=finding, effects=EFFECTS)
    assert "less is better" not in card
    loss = replace(finding, metric="log_loss", less_is_better=True)
    assert "log_loss (less is better)" in card_of(trained, backbone="tiny", licence=None, finding=loss)


@pytest.mark.parametrize("name", ["mood", "speech", "height"])
def test_a_card_holds_no_row_of_the_data_and_no_licence_that_nobody_gave(name, tasks, backbone, settings):
    from umbel.training.card import sample
    from umbel.training.data.rows import text_of

    (trained,) = fit(backbone, [tasks[name]], settings=settings)
    card = card_of(trained, backbone="tiny", licence="Apache-2.0", finding=None)
    splits = trained.prepared.splits
    rows = [text_of(row) for part in (splits.train, splits.validation, splits.test) for row in part]
    assert sample(trained) in rows
    assert not [text for text in rows if len(text) > 5 and text in card]
    assert "license" not in card.split("---")[1]


def test_a_card_without_held_out_rows_says_so(tasks, backbone, settings):
    (trained,) = fit(backbone, [tasks["height"]], settings=settings)
    assert "No rows were held out" in card_of(trained, backbone="tiny", licence=None, finding=None)


def test_commands_to_try_it_quote_what_they_must():
    from umbel.core.contract import OutputHead

    found = try_commands("mood", OutputHead.CLASSIFY, 'it\'s "fine"')
    shell = found["sh"].splitlines()
    import json
    import shlex

    assert shlex.split(shell[0]) == ["umbel", "run", "mood", 'it\'s "fine"']
    assert json.loads(shlex.split(shell[-1])[-1]) == {"model": "mood", "input": 'it\'s "fine"'}
    compile(found["python"], "card", "exec")
