"""Prometheus metrics, in a registry of the app's own. Labels are bounded: the first names seen, then ``other``."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_ADAPTERS = 200
"""Adapters with a label of their own; a home may hold ten thousand."""
OTHER = "other"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """``gauges`` and ``totals`` are read at each scrape, so that nobody has to keep them up to date."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._adapters: set[str] = set()
        self.requests = Counter(
            "umbel_http_requests", "Answered requests.", ("route", "method", "status"), registry=self.registry
        )
        self.success = Counter(
            "umbel_request_success", "Finished rows.", ("adapter", "version", "reason"), registry=self.registry
        )
        self.prompt_tokens = Counter("umbel_prompt_tokens", "Tokens read.", ("adapter",), registry=self.registry)
        self.generated = Counter("umbel_generation_tokens", "Tokens written.", ("adapter",), registry=self.registry)
        self.latency = self._histogram("umbel_request_duration_seconds", "From request to the last byte.", "route")
        self.first_token = self._histogram("umbel_time_to_first_token_seconds", "From request to the first token.")
        self.per_token = self._histogram("umbel_time_per_output_token_seconds", "Between tokens, mean of a row.")
        self.load = self._histogram("umbel_adapter_load_seconds", "What a row waited for its adapter.")

    def _histogram(self, name: str, what: str, *labels: str) -> Histogram:
        return Histogram(name, what, labels, buckets=_SECONDS, registry=self.registry)

    def watch(self, gauges: Callable[[], dict[str, float]], totals: Callable[[], dict[str, float]]) -> None:
        self.registry.register(_Watched(gauges, totals))

    def name(self, adapter: str) -> str:
        """The label of an adapter."""
        if adapter not in self._adapters and len(self._adapters) >= MAX_ADAPTERS:
            return OTHER
        self._adapters.add(adapter)
        return adapter

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Watched(Collector):
    def __init__(self, gauges: Callable[[], dict[str, float]], totals: Callable[[], dict[str, float]]) -> None:
        self.gauges = gauges
        self.totals = totals

    def collect(self) -> Iterator[Metric]:
        for name, value in self.gauges().items():
            yield GaugeMetricFamily(f"umbel_{name}", name.replace("_", " "), value=value)
        for name, value in self.totals().items():
            yield CounterMetricFamily(f"umbel_{name}", name.replace("_", " "), value=value)
