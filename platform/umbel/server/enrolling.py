"""Which arm of an experiment answers a request: whose it is, and the exposure that is written before it runs."""

import secrets
from dataclasses import dataclass, field
from typing import Literal

import anyio
from anyio import CapacityLimiter, to_thread
from starlette.requests import Request

from umbel.core.errors import Conflict, NotFound, Unavailable, UsageError
from umbel.core.protocols import VersionRef
from umbel.core.wire.base import MAX_UNIT
from umbel.core.wire.experiments import ERROR_RATE, FIRST_TOKEN
from umbel.engine import Finished
from umbel.experiments.live import answering, assign
from umbel.registry import Registry
from umbel.registry.outcomes import Outcome
from umbel.registry.records import Experiment, ExperimentStatus

UNIT_HEADER = "x-experiment-unit"
WRITERS = 8
"""Exposures that are written at once: a database that is slow holds up experiments, not other requests' lookups."""
PATIENCE_SECONDS = 5.0
"""How long one exposure may take to be written."""
_GONE = 499

Source = Literal["header", "safety_identifier", "key", "request"]


@dataclass(slots=True)
class Enrolment:
    """One request as part of an experiment, and how it went."""

    experiment: str
    state: str
    """``sticky``, ``not-sticky``, ``outside``, ``stopped`` or ``decided``: only the first two are exposed."""
    source: Source
    unit: str
    arm: str | None = None
    """Set exactly where an exposure stands behind the answer."""
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    failed: bool = False
    first_token: float | None = None
    """Seconds."""

    @property
    def headers(self) -> dict[str, str]:
        arm = {"X-Umbel-Arm": self.arm} if self.arm is not None else {}
        by_unit = self.state in ("sticky", "not-sticky", "outside")
        assignment = f"{self.state}; unit={self.source}" if by_unit else self.state
        return {"X-Umbel-Experiment": self.experiment, **arm, "X-Umbel-Assignment": assignment}

    def saw(self, finished: Finished) -> None:
        """One row of the request ended. Loading an adapter is paid once by whoever comes first: it is not counted."""
        self.failed = self.failed or finished.error is not None
        timing = finished.timing
        if finished.error is None and finished.reason != "cancelled":
            self.first_token = max(self.first_token or 0.0, (timing.queue_ms + timing.prefill_ms) / 1e3)

    def outcomes(self, status: int) -> list[Outcome]:
        """What the whole request measured. A client that went away says nothing about the arm."""
        if self.arm is None or (status == _GONE and not self.failed):
            return []
        failed = self.failed or status >= 400
        found = [self._outcome(ERROR_RATE, float(failed))]
        if not failed and self.first_token is not None:
            found.append(self._outcome(FIRST_TOKEN, self.first_token))
        return found

    def _outcome(self, metric: str, value: float) -> Outcome:
        key = f"auto-{self.token}-{metric}"
        return Outcome(metric=metric, value=value, idempotency_key=key, name=self.experiment, unit=self.unit)


@dataclass(slots=True)
class Caller:
    """Who asks, as far as an experiment must know it."""

    unit: str
    source: Source
    request_id: str
    enrolment: Enrolment | None = None

    @classmethod
    def of(cls, request: Request, safety_identifier: str | None) -> "Caller":
        """The unit is the header X-Experiment-Unit, else ``safety_identifier``, else the key, else the request itself.

        Empty ones count as not sent. Leaves itself where Trace finds it at the end.
        """
        state = request.state
        unit, source = _unit(request, safety_identifier, state.actor)
        caller = cls(unit, source, state.request_id)
        state.caller = caller
        return caller


class Enroller:
    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._writers: CapacityLimiter | None = None

    async def find(self, name: str) -> Experiment | None:
        """The experiment of that name; None where it names something else, or nothing."""
        try:
            found = await to_thread.run_sync(self.registry.experiments.get, name)
        except NotFound:
            return None
        return found if found.name == name else None

    async def enrol(self, experiment: Experiment, caller: Caller) -> tuple[VersionRef, Enrolment]:
        """What answers, with the exposure written. Raises Unavailable where it cannot be."""
        if caller.enrolment is not None:
            raise UsageError(
                f"{caller.enrolment.experiment!r} and {experiment.name!r} are both experiments.",
                code="one_experiment",
                param="model",
                hint="name one experiment in a request: its id leads feedback to one exposure",
            )
        caller.enrolment = await self._enrolment(experiment, caller)
        arm = caller.enrolment.arm
        version = next((one.version for one in experiment.arms if one.name == arm), None)
        return version or answering(await self._now(experiment, caller.enrolment)), caller.enrolment

    async def _enrolment(self, experiment: Experiment, caller: Caller) -> Enrolment:
        name = experiment.name
        if experiment.status != ExperimentStatus.RUNNING:
            return Enrolment(name, experiment.status, caller.source, caller.unit)
        try:
            arm = await self._assign(experiment, caller)
        except Conflict as error:
            if error.code != "experiment_stopped":
                raise
            return Enrolment(name, "stopped", caller.source, caller.unit)
        if arm is None:
            return Enrolment(name, "outside", caller.source, caller.unit)
        return Enrolment(name, _stickiness(caller), caller.source, caller.unit, arm)

    async def _assign(self, experiment: Experiment, caller: Caller) -> str | None:
        self._writers = self._writers or CapacityLimiter(WRITERS)
        try:
            with anyio.fail_after(PATIENCE_SECONDS):
                return await to_thread.run_sync(
                    lambda: assign(self.registry, experiment, caller.unit, request_id=caller.request_id),
                    abandon_on_cancel=True,
                    limiter=self._writers,
                )
        except TimeoutError:
            raise Unavailable(
                f"the exposure to {experiment.name!r} could not be written in time.",
                code="exposure_unavailable",
                hint="ask again in a moment; adapters asked by their own names answer meanwhile",
                retry_after=1.0,
            ) from None

    async def _now(self, experiment: Experiment, enrolment: Enrolment) -> Experiment:
        """It may have been decided since it was looked at."""
        if enrolment.state == "stopped" and experiment.status == ExperimentStatus.RUNNING:
            return await to_thread.run_sync(self.registry.experiments.get, experiment.name)
        return experiment


def _stickiness(caller: Caller) -> str:
    return "not-sticky" if caller.source == "request" else "sticky"


def _unit(request: Request, safety_identifier: str | None, actor: str) -> tuple[str, Source]:
    if header := _header(request):
        return header, "header"
    if safety_identifier:
        return safety_identifier, "safety_identifier"
    if actor != "anonymous":
        return actor, "key"
    return secrets.token_hex(16), "request"


def _header(request: Request) -> str:
    """As UTF-8 where it is: the unit of feedback comes as JSON, and both must be one text."""
    raw = request.headers.get(UNIT_HEADER, "").encode("latin-1")
    try:
        unit = raw.decode().strip()
    except UnicodeDecodeError:
        unit = raw.decode("latin-1").strip()
    if len(unit) > MAX_UNIT:
        raise UsageError(
            f"X-Experiment-Unit has {len(unit)} characters; at most {MAX_UNIT} are taken.",
            code="invalid_unit",
            param="X-Experiment-Unit",
            hint="send a hash of it",
        )
    return unit
