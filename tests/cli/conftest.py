"""A home with a tiny backbone and a few real adapters, and the command line on it as `main` runs it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from umbel.adapters.adapter import Adapter, fresh_adapter
from umbel.adapters.peft_io import export_files
from umbel.backbone.backbone import Backbone
from umbel.backbone.installed import Source
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.cli import main
from umbel.cli.known import register_backbone
from umbel.core.contract import Contract
from umbel.core.settings import Settings
from umbel.registry.records import Version
from umbel.registry.registry import Registry

MOOD = Contract(output_head="classify", labels=("negative", "neutral", "positive"))
CARD = "---\nbase_model: tiny\n---\n# mood\n\nThe mood of a text.\n"


@dataclass(frozen=True)
class Answer:
    """What one command line gave."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The cells of a table in a pipe, without its header."""
        return [line.split("\t") for line in self.out.splitlines()[1:]]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("source") / "tiny"))


@pytest.fixture(scope="session")
def made(tiny: Backbone) -> Callable[..., Adapter]:
    """made(seed, method=, noise=, contract=, **options): noise 0 leaves it as fresh as training begins."""

    def make(
        seed: int = 1, *, method: str = "lora", noise: float = 0.1, contract: Contract = MOOD, **options: object
    ) -> Adapter:
        adapter = fresh_adapter(method, options, contract, tiny.shape, backbone=tiny.fingerprint, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for tensor in adapter.tensors.values():
            tensor += torch.randn(tensor.shape, generator=generator) * noise
        return adapter

    return make


def publish(registry: Registry, name: str, adapter: Adapter, **given: object) -> Version:
    return registry.publish(
        export_files(adapter, backbone_name="tiny"),
        name=name,
        method=adapter.method.name,
        config=adapter.config,
        contract=adapter.contract,
        backbone=adapter.backbone,
        n_params=adapter.num_parameters,
        **given,
    )


@pytest.fixture(scope="session")
def published() -> Callable[..., Version]:
    """published(registry, name, adapter): one more version."""
    return publish


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory, tiny: Backbone, made: Callable[..., Adapter]) -> Path:
    """mood:1 to mood:3 (champion 1, canary 3), tone:1."""
    home = tmp_path_factory.mktemp("filled")
    settings = Settings(home=home, database_url=f"sqlite:///{home / 'registry.db'}", store_url=str(home / "store"))
    source = Source(source="folder:tiny", revision=None, sha256=None, licence=None, pulled_at="2026-01-31T09:05:00Z")
    folder = settings.backbones / "tiny"
    shutil.copytree(tiny.folder, folder)
    source.write(folder)
    register_backbone(settings, "tiny", folder, source)
    with Registry.open(settings) as registry:
        publish(registry, "mood", made(1), description="The mood of a tweet", tags={"team": "search"}, card=CARD)
        publish(registry, "mood", made(2), metrics={"accuracy": 0.81}, parent="mood:1", seed=2)
        publish(registry, "mood", made(3, rank=4), metrics={"accuracy": 0.82}, parent="mood:2")
        registry.aliases.set("mood:3", "canary", reason="better at irony")
        publish(registry, "tone", made(4, method="ia3"), metrics={"accuracy": 0.5})
    return home


@pytest.fixture
def stocked(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``filled`` as this test's home."""
    home = tmp_path / "home"
    shutil.copytree(filled, home)
    for name in ("UMBEL_DATABASE_URL", "UMBEL_STORE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UMBEL_HOME", str(home))
    return home


@pytest.fixture
def registry(stocked: Path) -> Iterator[Registry]:
    with Registry.open() as opened:
        yield opened


@pytest.fixture
def run(stocked: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """run("adapters", "list") in that home."""

    def call(*words: str) -> Answer:
        code = main.main(words)
        return Answer(code, *capsys.readouterr())

    return call
