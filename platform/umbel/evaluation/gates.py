"""Which metrics a gate may name, by output head."""

from umbel.core.contract import OutputHead
from umbel.core.errors import UsageError
from umbel.core.gate import Gate
from umbel.evaluation.scoring import metrics_of

PROBES = ("forgetting", "probe_perplexity", "probe_accuracy")
"""Measured on the fixed probe, whatever the output head (``umbel.evaluation.forgetting``)."""


def check_metrics(gate: Gate, head: OutputHead) -> None:
    """Raises UsageError (``unknown_metric``) with the list of those that are known."""
    known = (*metrics_of(head), *PROBES)
    unknown = next((metric for metric in gate.metrics if metric not in known), None)
    if unknown is not None:
        raise UsageError(
            f"the gate names {unknown!r}, which is not measured under a {head} head.",
            code="unknown_metric",
            param="gate",
            hint=f"choose from {', '.join(known)}",
        )
