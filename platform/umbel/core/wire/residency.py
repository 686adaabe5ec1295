"""``/v1/adapters/{name}/warm`` and ``/unload``: which versions the engine holds, by hand."""

from typing import Annotated

from pydantic import Field, StrictInt, StrictStr

from umbel.core.names import CHAMPION
from umbel.core.wire.base import Reply, Request

Which = Annotated[StrictStr, Field(min_length=1, max_length=100)] | Annotated[StrictInt, Field(ge=1)]
"""A number, an alias or a digest."""


class UnloadRequest(Request):
    version: Which = CHAMPION


class WarmRequest(UnloadRequest):
    timeout: Annotated[float, Field(strict=True, gt=0, le=600)] = 60.0
    """Seconds to wait until it is resident; the load itself goes on."""


class Residency(Reply):
    """Whether the engine holds a version now."""

    adapter: str
    """``name:3``, as resolved."""
    digest: str
    resident: bool
    changed: bool
    """False where it was so already."""
