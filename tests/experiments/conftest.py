"""A registry with three versions of one adapter, for experiments as they are kept. Their weights are bytes only."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from umbel.core.contract import Contract, OutputHead
from umbel.core.digests import digest_bytes
from umbel.core.settings import Settings
from umbel.core.wire.experiments import ArmSpec, ExperimentSpec, MetricSpec
from umbel.experiments.live import Live
from umbel.registry import Registry

BACKBONE = digest_bytes(b"a backbone")
MOOD = Contract(output_head=OutputHead.CLASSIFY, labels=("negative", "positive"))


def settings_in(home: Path) -> Settings:
    return Settings(home=home, database_url=f"sqlite:///{home / 'registry.db'}", store_url=str(home / "store"))


def publish_bytes(registry: Registry, name: str, weights: bytes, **given: object) -> None:
    values = {"method": "lora", "config": {"rank": 8}, "contract": MOOD, "backbone": BACKBONE}
    files = {"adapter_model.safetensors": weights, "adapter_config.json": b"{}"}
    registry.publish(files, name=name, **values | given)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path / "home")


@pytest.fixture
def registry(settings: Settings) -> Iterator[Registry]:
    with Registry.open(settings) as opened:
        for weights in (b"1", b"2", b"3"):
            publish_bytes(opened, "mood", weights)
        yield opened


@pytest.fixture
def publish_as(registry: Registry) -> Callable[..., None]:
    """publish_as(name, **contract): version 1 of an adapter with another contract."""
    return lambda name, **fields: publish_bytes(registry, name, b"9", contract=Contract(**MOOD.model_dump() | fields))


@pytest.fixture
def live(registry: Registry) -> Live:
    return Live(registry, "ada")


@pytest.fixture
def spec():
    """spec(name=, arms=, metrics=, **fields): arms as name=model, the control first."""

    def make(name: str = "tone", arms: dict[str, str] | None = None, metrics: tuple = ("thumbs",), **fields: object):
        arms = arms or {"control": "mood:1", "candidate": "mood:2"}
        weights = fields.pop("weights", [None] * len(arms))
        return ExperimentSpec(
            name=name,
            arms=[
                ArmSpec(name=arm, model=model, weight=w) for (arm, model), w in zip(arms.items(), weights, strict=True)
            ],
            metrics=[MetricSpec(name=metric) if isinstance(metric, str) else metric for metric in metrics],
            **fields,
        )

    return make
