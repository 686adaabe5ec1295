"""``/v1/experiments`` and ``/v1/feedback``: what shares a name's traffic, and what came of it. Times are UTC ms."""

import math
from collections import Counter
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictBool, StrictStr, model_validator

from umbel.core.errors import UsageError
from umbel.core.wire.adapters import AliasEventView
from umbel.core.wire.base import Reply, Request, Unit

MAX_ARMS = 20

ERROR_RATE = "error_rate"
FIRST_TOKEN = "time_to_first_token"
GUARDRAILS = (ERROR_RATE, FIRST_TOKEN)
"""What a server measures by itself, for every experiment. Lower is better."""

_Word = Annotated[StrictStr, Field(min_length=1, max_length=63)]
_Reason = Annotated[StrictStr, Field(min_length=1, max_length=500)] | None
_Text = Annotated[str, BeforeValidator(str)]
_Share = Annotated[float, Field(ge=0, le=1)]


class ArmSpec(Request):
    name: _Word
    model: Annotated[StrictStr, Field(min_length=1, max_length=300)]
    """Pinned to the version that it means now."""
    weight: Annotated[float, Field(gt=0, le=1)] | None = None


class MetricSpec(Request):
    name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    higher_is_better: StrictBool = True


class ExperimentSpec(Request):
    """The first arm is the control, the first metric decides. Weights are given for all arms, or for none."""

    name: _Word
    arms: Annotated[list[ArmSpec], Field(min_length=2, max_length=MAX_ARMS)]
    metrics: Annotated[list[MetricSpec], Field(min_length=1, max_length=20)]
    share: _Share = 1.0
    """Part of the units that take part; the control answers the others."""
    salt: Annotated[StrictStr, Field(min_length=1, max_length=200)] | None = None
    """A random one where none is given."""
    aa: StrictBool = False
    """Allow one version in several arms: a test of the set-up itself."""
    alpha: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """How often a winner may be declared where there is none, over all looks together."""
    horizon: Annotated[float, Field(ge=100, le=1e9)] = 5000
    """Units of all arms at which intervals are to be tightest."""

    @model_validator(mode="after")
    def _consistent(self) -> "ExperimentSpec":
        _refuse_twice([arm.name for arm in self.arms], "arms")
        _refuse_twice([metric.name for metric in self.metrics], "metrics")
        if own := [metric.name for metric in self.metrics if metric.name in GUARDRAILS]:
            raise UsageError(
                f"{own[0]} is measured by the server itself.",
                code="reserved_metric",
                param="metrics",
                hint="leave it out: every experiment has it",
            )
        _check_weights([arm.weight for arm in self.arms])
        return self

    @property
    def weights(self) -> dict[str, float]:
        """By arm; equal where none is given."""
        return {arm.name: arm.weight or 1 / len(self.arms) for arm in self.arms}


def _refuse_twice(names: list[str], what: str) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(f"{what} name {twice[0]!r} twice.", code=f"invalid_{what}", param=what)


def _check_weights(weights: list[float | None]) -> None:
    given = [weight for weight in weights if weight is not None]
    if given and len(given) < len(weights):
        raise UsageError(
            f"{len(weights)} arms but {len(given)} weights.",
            code="invalid_weights",
            param="weights",
            hint="give each arm a weight, or none of them",
        )
    if given and not math.isclose(sum(given), 1.0, abs_tol=1e-6):
        listed = ", ".join(f"{weight:g}" for weight in given)
        raise UsageError(
            f"the weights {listed} sum to {sum(given):g}, not to 1.",
            code="invalid_weights",
            param="weights",
            hint="open an experiment to a part of the traffic by its share; weights divide that part",
        )


class RampRequest(Request):
    share: _Share


class StopRequest(Request):
    reason: _Reason = None


class DecideRequest(Request):
    """``winner`` None takes the one that the report names. ``force`` decides without a result, for a ``reason``."""

    winner: _Word | None = None
    promote: StrictBool = True
    """Give the winner's version the traffic of its adapter's bare name."""
    force: StrictBool = False
    reason: _Reason = None

    @model_validator(mode="after")
    def _reasoned(self) -> "DecideRequest":
        if self.force and self.winner and not self.reason:  # which arms there are, only the experiment can tell
            raise UsageError(
                "force needs a reason: the experiment gives none.",
                code="missing_reason",
                param="reason",
                hint="reason: why this arm all the same (--reason 'why')",
            )
        return self


class ArmView(Reply):
    name: str
    version: _Text
    """``name:3``"""
    digest: str
    weight: float
    """All of them sum to 1."""


class MetricView(Reply):
    name: str
    higher_is_better: bool


class ExperimentView(Reply):
    """``status`` is ``running``, ``stopped`` (the control answers) or ``decided`` (the winner answers)."""

    id: str
    name: str
    status: str
    arms: list[ArmView]
    """The control first."""
    metrics: list[MetricView]
    """The deciding one first, the server's own guardrails last."""
    share: float
    aa: bool
    alpha: float
    horizon: float
    decision: dict[str, Any] | None = None
    created_by: str
    created_at: int
    stopped_at: int | None = None

    @property
    def control(self) -> ArmView:
        return self.arms[0]


class SampleRatioView(Reply):
    """Whether the units are where the weights say. ``e_value`` above 100 trips it."""

    e_value: float
    tripped: bool
    observed: dict[str, int]
    expected: dict[str, float]


class EffectView(Reply):
    """One arm against the control by one metric. ``low`` to ``high`` holds at all looks; None while it is too early."""

    metric: str
    arm: str
    n: int
    n_control: int
    mean: float | None = None
    mean_control: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    verdict: str
    """``better``, ``worse``, ``undecided`` or ``too early``, by the metric's own direction."""
    missing_differs: bool = False
    """Outcomes come in at different rates in the two arms: the difference may be one of who answers."""


class ExperimentReport(Reply):
    experiment: ExperimentView
    sample_ratio: SampleRatioView
    withheld: bool
    """The split is broken: no difference is shown and nothing can be decided."""
    effects: list[EffectView]
    sentence: str
    """What may be done now."""
    warnings: list[str]
    """Guardrails that an arm is worse by, and what else must be known before the sentence is acted on."""
    winner: str | None = None


class DecisionView(Reply):
    experiment: ExperimentView
    promoted: AliasEventView | None = None
    """None where nothing was to be promoted; equal ``origin`` and ``target`` where it was the champion already."""


class FeedbackRequest(Request):
    """One measurement, of a request by its ``x-request-id``, or of a unit of an experiment.

    A unit needs an ``idempotency_key``: a second outcome of the same unit and a repeated one look alike. For a request
    it may be left out; then each metric counts once.
    """

    request_id: Annotated[StrictStr, Field(min_length=1, max_length=64)] | None = None
    experiment: Annotated[StrictStr, Field(min_length=1, max_length=63)] | None = None
    unit: Unit | None = None
    metric: Annotated[StrictStr, Field(min_length=1, max_length=64)]
    value: StrictBool | Annotated[float, Field(strict=True, ge=-1e12, le=1e12)]
    """True is 1 and false 0."""
    idempotency_key: Annotated[StrictStr, Field(min_length=1, max_length=255)] | None = None

    @model_validator(mode="after")
    def _whose(self) -> "FeedbackRequest":
        if self.metric in GUARDRAILS:
            raise UsageError(f"{self.metric} is measured by the server itself.", code="reserved_metric", param="metric")
        by_unit = self.unit is not None and self.experiment is not None
        if (self.request_id is not None) == (self.unit is not None) or not (self.request_id is not None or by_unit):
            raise UsageError(
                "whose outcome is it?",
                code="invalid_feedback",
                param="request_id" if self.unit is None else "experiment",
                hint="send request_id (x-request-id of the answer), or experiment and unit",
            )
        return self


class FeedbackReply(Reply):
    counted: bool
    """False where it came before."""
