"""The serving engine: one backbone, many adapters, rows of any of them in one step."""

from umbel.engine.engine import Engine, Stats
from umbel.engine.handle import Handle
from umbel.engine.loop import EngineThread
from umbel.engine.requests import (
    Alternative,
    Answer,
    Event,
    Finished,
    FinishReason,
    GenerateRequest,
    Pooled,
    PoolRequest,
    Prompt,
    Request,
    Scored,
    Timing,
    Token,
    Usage,
)

__all__ = [
    "Alternative",
    "Answer",
    "Engine",
    "EngineThread",
    "Event",
    "FinishReason",
    "Finished",
    "GenerateRequest",
    "Handle",
    "PoolRequest",
    "Pooled",
    "Prompt",
    "Request",
    "Scored",
    "Stats",
    "Timing",
    "Token",
    "Usage",
]
