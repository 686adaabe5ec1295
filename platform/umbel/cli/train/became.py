"""What a run became: its version, how that did on held-out rows, and whether it passed its gate. The run's last event
but its end says so: a version that had been published before names another run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from umbel.cli.cells import metrics as in_short

if TYPE_CHECKING:
    from umbel.registry.registry import Registry
    from umbel.training.card import Finding

_PUBLISHED = "published "
_NOT_PUBLISHED = "judged, not to be published"


@dataclass(frozen=True, slots=True, kw_only=True)
class Became:
    version: str | None
    """None where it was not to be published."""
    metric: str | None
    """What it was judged by; None where no rows were held out, and of runs from before this was kept."""
    rows: int | None
    """Held out."""
    metrics: Mapping[str, float]
    gate_passed: bool | None
    """None where there was none."""
    gate_failures: Sequence[str]

    @property
    def figure(self) -> str | None:
        """``accuracy 0.756 on 1,000 held-out rows``."""
        if self.metric is None or self.rows is None:
            return in_short(self.metrics) or None
        return f"{in_short(self.metrics, [self.metric])} on {self.rows:,} held-out rows"

    @property
    def verdict(self) -> str | None:
        """Of its gate."""
        if self.gate_passed is None:
            return None
        return "passed" if self.gate_passed else f"not passed: {'; '.join(self.gate_failures)}"


def note_end(
    registry: "Registry",
    run: str,
    version: str | None,
    metrics: Mapping[str, float],
    finding: "Finding | None",
    failures: Sequence[str] | None,
) -> None:
    """``failures`` of its gate: None where it has none."""
    data: dict[str, Any] = {} if version is None else {"version": version}
    data |= metrics
    data |= {} if finding is None else {"judged_by": finding.metric, "held_out_rows": finding.rows}
    data |= {} if failures is None else {"gate_passed": not failures, "gate_failures": list(failures)}
    registry.event(run, _NOT_PUBLISHED if version is None else f"{_PUBLISHED}{version}", data=data)


def became(registry: "Registry", run: str) -> Became | None:
    """None of a run that has not come so far."""
    said = [each for each in registry.runs.events(run) if each.message.startswith((_PUBLISHED, _NOT_PUBLISHED))]
    if not said:
        return None
    data = dict(said[-1].data or {})
    return Became(
        version=data.pop("version", None),
        metric=data.pop("judged_by", None),
        rows=data.pop("held_out_rows", None),
        gate_passed=data.pop("gate_passed", None),
        gate_failures=data.pop("gate_failures", []),
        metrics=data,
    )
