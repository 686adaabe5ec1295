"""A home with a tiny backbone and published adapters of every output head, and servers over it with a real engine."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from umbel.adapters.adapter import Adapter, fresh_adapter
from umbel.adapters.head import HeadConfig
from umbel.adapters.peft_io import export_files, load_adapter
from umbel.adapters.wear import fuse_all, wear
from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import Output, whole_step
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.clock import new_id
from umbel.core.contract import Contract, Decoding, OutputHead
from umbel.core.settings import Settings
from umbel.core.wire.experiments import ArmSpec, ExperimentSpec, MetricSpec
from umbel.experiments.live import Live as Experiments
from umbel.registry import Registry
from umbel.registry.records import Version
from umbel.server.app import create_app
from umbel.server.assembly import Running, running
from umbel.server.runner import Runner, bind, url_of
from umbel.server.service import Capacity, ServerConfig

torch.set_num_threads(1)

CAPACITY = Capacity(max_rows=8, kv_bytes=16_000_000, adapter_bytes=4_000_000)


def randomised(adapter: Adapter, seed: int, scale: float = 0.5) -> Adapter:
    """A fresh adapter changes nothing; this one changes every answer."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapter.tensors.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return adapter


@dataclass
class Home:
    """A registry and the backbone that its adapters are made for."""

    registry: Registry
    backbone: Backbone
    settings: Settings

    def publish(
        self,
        name: str,
        contract: Contract,
        *,
        seed: int,
        method: str = "lora",
        head: HeadConfig | None = None,
        **options: Any,
    ) -> Version:
        backbone, options = self.backbone, options or ({"rank": 4} if method == "lora" else {})
        bound = backbone.fingerprint
        adapter = fresh_adapter(method, options, contract, backbone.shape, backbone=bound, seed=seed, head=head)
        adapter = randomised(adapter, seed)
        return self.registry.publish(
            export_files(adapter, backbone_name=backbone.name),
            name=name,
            method=method,
            config=adapter.config,
            contract=contract,
            backbone=backbone.fingerprint,
            metrics={"accuracy": seed / 100},
            seed=seed,
            n_params=adapter.num_parameters,
        )

    def forward(self, ref: str, ids: list[int]) -> tuple[Adapter, Output]:
        """The version and a plain full forward of one text through it: what every answer is compared with."""
        stored = self.registry.fetch(self.registry.resolve(ref).digest)
        adapter = load_adapter(stored, self.backbone.shape)
        sites = wear(fuse_all([adapter], list(self.backbone.decoder.layers)), [0])
        step = whole_step(sites, rows=1, tokens=len(ids), want=torch.arange(len(ids)))
        with torch.no_grad():
            return adapter, self.backbone.decoder(torch.tensor([ids]), step)


@pytest.fixture(scope="session", name="contract")
def _contract() -> Callable[..., Contract]:
    return contract


def contract(head: str, **fields: Any) -> Contract:
    return Contract(output_head=OutputHead(head), **fields)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("home")
    return Settings(home=home, database_url=f"sqlite:///{home / 'registry.db'}", store_url=str(home / "store"))


@pytest.fixture(scope="session")
def home(settings: Settings) -> Iterator[Home]:
    backbone = load_backbone(tiny_backbone(settings.backbones / "tiny"), dtype="float32")
    with Registry.open(settings) as registry:
        registry.backbones.register(name="tiny", fingerprint=backbone.fingerprint, source="tiny", config={})
        made = Home(registry, backbone, settings)
        greedy = Decoding(max_tokens=8)
        made.publish("writer", contract("generate", template="Q: {text}\nA:", decoding=greedy), seed=1)
        made.publish("talker", contract("generate", input_form="messages", decoding=greedy), seed=2)
        made.publish("rhymer", contract("generate", decoding=greedy), seed=3, rank=2, rslora=True)
        made.publish("mood", contract("classify", labels=("bad", "good", "so-so"), max_length=24), seed=4)
        made.publish("topics", contract("classify", labels=("a", "b"), multi_label=True, threshold=0.5), seed=5)
        made.publish("stars", contract("regress"), seed=6)
        made.publish("names", contract("tag", labels=("O", "NAME"), max_length=40), seed=7)
        made.publish("vector", contract("embed"), seed=8)
        yield made


@pytest.fixture(scope="session")
def serving(home: Home) -> Iterator[Running]:
    with running(home.backbone, home.registry, CAPACITY, ServerConfig()) as parts:
        yield parts


@pytest.fixture(scope="session")
def client(serving: Running) -> Iterator[TestClient]:
    with TestClient(create_app(serving.service), base_url="http://localhost") as opened:
        yield opened


@dataclass
class Live:
    """A server on a real socket, in a thread of this process."""

    url: str
    runner: Runner
    parts: Running
    thread: threading.Thread

    def stop(self) -> None:
        self.runner.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextmanager
def live_server(home: Home, *, grace: float = 5.0, capacity: Capacity = CAPACITY, **config: Any) -> Iterator[Live]:
    listening = bind("127.0.0.1", 0)
    ready = threading.Event()
    with running(home.backbone, home.registry, capacity, ServerConfig(**config)) as parts:
        app = create_app(parts.service)
        runner = Runner(app, parts.service, parts.thread, grace=grace, on_ready=ready.set)
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        assert ready.wait(20)
        live = Live(url_of(listening), runner, parts, thread)
        try:
            yield live
        finally:
            if thread.is_alive():
                live.stop()
            listening.close()


@pytest.fixture(scope="session")
def live(home: Home) -> Iterator[Live]:
    with live_server(home) as started:
        yield started


@pytest.fixture
def serve(home: Home) -> Callable[..., Any]:
    """``with serve(require_keys=True) as live:`` for a test that needs a server of its own."""
    return lambda **config: live_server(home, **config)


def _wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never happened")


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Looks again and again at what another thread does; fails where it never happens."""
    return _wait_until


@pytest.fixture
def idle(live: Live) -> Live:
    """The live server with nothing left of earlier tests."""
    _wait_until(lambda: not live.parts.service.in_flight and not live.parts.thread.stats().running)
    return live


@pytest.fixture(scope="module")
def book(home: Home) -> Iterator[Experiments]:
    """Experiments, with ab:1 and ab:2 to compare. What a module leaves running is stopped behind it."""
    like = home.registry.versions.get("rhymer:1").contract
    for seed in (61, 62):
        home.publish("ab", like, seed=seed)
    experiments = Experiments(home.registry)
    yield experiments
    for one in list(experiments.list("running")):
        experiments.stop(one.name)


@pytest.fixture
def begin(book: Experiments) -> Callable[..., str]:
    """begin(name=, arms=, **fields): starts an experiment on ab:1 and ab:2, or on ``arms``, and returns its name."""

    def make(name: str | None = None, arms: dict[str, str] | None = None, **fields: Any) -> str:
        named = arms or {"control": "ab:1", "candidate": "ab:2"}
        spec = ExperimentSpec(
            name=name or f"try-{new_id('x')}",
            arms=[ArmSpec(name=arm, model=model) for arm, model in named.items()],
            metrics=[MetricSpec(name="thumbs")],
            **fields,
        )
        return book.create(spec).name

    return make
