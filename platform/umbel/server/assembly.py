"""Puts a server's parts together: a backbone, an engine on its thread, a registry, and the service over them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from umbel.backbone.backbone import Backbone
from umbel.core.clock import now_ms
from umbel.core.contract import Contract, OutputHead
from umbel.core.kept import KeptFiles
from umbel.engine import Engine, GenerateRequest, PoolRequest
from umbel.engine.loop import EngineThread
from umbel.registry import Registry
from umbel.registry.records import Scope
from umbel.server.guardrails import Guardrails
from umbel.server.hosts import is_loopback
from umbel.server.importing import Base, Importer
from umbel.server.metrics import Metrics
from umbel.server.security import FREE_ON_LOOPBACK, Gate
from umbel.server.service import Capacity, ServerConfig, Service
from umbel.server.target import BackboneCard, Targets
from umbel.server.texts import Texts


@dataclass(frozen=True, slots=True)
class Running:
    """A service and what must be closed behind it."""

    service: Service
    thread: EngineThread


@contextmanager
def running(backbone: Backbone, registry: Registry, capacity: Capacity, config: ServerConfig) -> Iterator[Running]:
    """Starts the engine's thread; what is unfinished at the end fails with ``shutting_down``."""
    engine = Engine(
        backbone,
        registry,
        kv_bytes=capacity.kv_bytes,
        adapter_bytes=capacity.adapter_bytes,
        max_rows=capacity.max_rows,
        guesses=capacity.guesses,
        ready=KeptFiles(registry.settings.ready, registry.settings.ready_bytes),
    )
    with EngineThread(engine) as thread:
        yield Running(make_service(backbone, registry, thread, capacity, config), thread)


def make_service(
    backbone: Backbone, registry: Registry, thread: EngineThread, capacity: Capacity, config: ServerConfig
) -> Service:
    card = describe(backbone, context=thread.engine.limits.max_length)
    metrics = Metrics()
    service = Service(
        registry=registry,
        engine=thread,
        capacity=capacity,
        backbone=card,
        targets=Targets(registry, card),
        texts=Texts(backbone.tokenizer, card.context),
        gate=Gate(registry.keys, free=_free(config)),
        metrics=metrics,
        guardrails=Guardrails(registry),
        importer=Importer(registry, Base(backbone.name, backbone.fingerprint, backbone.shape, backbone.decoder.matrix)),
        config=config,
    )
    metrics.watch(lambda: _gauges(service), lambda: _totals(service))
    return service


async def preload(service: Service, models: Sequence[str]) -> None:
    """Loads adapters (an experiment: all its arms) by asking each one token. Raises what a request would meet."""
    one = (service.texts.tokenizer.eos or 0,)
    for model in models:
        for target in await service.targets.all_of(model):
            if target.adapter is None:
                continue
            if target.contract.output_head is OutputHead.GENERATE:
                await service.submit(GenerateRequest(tokens=one, adapter=target.adapter, max_tokens=0)).answer()
            else:
                await service.submit(PoolRequest(tokens=one, adapter=target.adapter)).answer()


def describe(backbone: Backbone, *, context: int) -> BackboneCard:
    """The bare backbone has a contract too: its own chat template, the tokenizer's special tokens, greedy."""
    contract = Contract(
        output_head=OutputHead.GENERATE,
        input_form="messages" if backbone.tokenizer.has_chat_template else "prompt",
        add_special_tokens=True,
        max_length=max(1, context),
    )
    return BackboneCard(
        name=backbone.name,
        fingerprint=backbone.fingerprint,
        dtype=str(backbone.dtype).removeprefix("torch."),
        quantised=backbone.quantised,
        context=context,
        contract=contract,
        loaded_at=now_ms(),
    )


def _free(config: ServerConfig) -> tuple[Scope, ...]:
    return FREE_ON_LOOPBACK if is_loopback(config.host) and not config.require_keys else ()


def _gauges(service: Service) -> dict[str, float]:
    stats = service.engine.stats()
    return {
        "rows_running": stats.running,
        "rows_waiting": stats.waiting,
        "requests_in_flight": service.in_flight,
        "kv_bytes_reserved": stats.kv_bytes_reserved,
        "kv_bytes": service.capacity.kv_bytes,
        "kv_bytes_kept": stats.kv_bytes_kept,
        "kv_bytes_saved": stats.kv_bytes_saved,
        "rows_preempted": stats.rows_preempted,
        "adapter_bytes_used": stats.adapter_bytes,
        "adapter_bytes": service.capacity.adapter_bytes,
        "adapters_resident": len(stats.adapters),
        "adapters_loading": stats.adapters_loading,
    }


def _totals(service: Service) -> dict[str, float]:
    stats = service.engine.stats()
    ended = {f"rows_{reason}": float(count) for reason, count in stats.finished.items()}
    did = {"steps": stats.steps, "tokens_prefilled": stats.prompt_tokens, "adapter_evictions": stats.evictions}
    kept = {"prefix_hits": stats.prefix_hits, "prefix_tokens": stats.prefix_tokens, "preemptions": stats.preemptions}
    ahead = {"tokens_guessed": stats.guessed_tokens, "tokens_guessed_right": stats.guessed_right}
    return {**did, **kept, **ahead, **ended}
