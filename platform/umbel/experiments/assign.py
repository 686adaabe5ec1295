"""Who sees which arm: a hash, so that the same unit always gets the same arm, on any machine, without asking anybody.

    bucket = first 8 bytes of sha256(salt, 0x00, unit), big-endian, / 2^64        in [0, 1)

Arm i owns the stretch of [0, 1) that starts where the weights before it end, and takes the first ``share`` of it:

    share 0.2, weights 1:1      [control ]............................[candidate].........................
                                0        0.1                          0.5       0.6                       1

So raising ``share`` only lets new units in; nobody who is in changes arm, and the arms keep their proportions, which
the sample-ratio check and the comparison of means rely on. With ``share`` 1 and two arms, raising the second arm's
weight moves units of the first to the second and never back.

What the hash cannot promise, the stored first exposure does (first assignment wins): lowering ``share``, changing
the weights of three or more arms, adding or reordering arms, another salt or another ``HASH_VERSION`` all move
boundaries, and a unit that was already exposed must then be looked up, not hashed again.
"""

import hashlib
import math
from dataclasses import dataclass

from umbel.core.errors import ConfigError

HASH_VERSION = 1
"""Stored with every experiment: a later way of hashing must not move the units of a running one."""

_LARGEST = math.nextafter(1.0, 0.0)


def bucket(salt: str, unit: str) -> float:
    """Where ``unit`` falls in [0, 1) under ``salt``. One salt per experiment, or experiments correlate."""
    first = hashlib.sha256(salt.encode() + b"\0" + unit.encode()).digest()[:8]
    return min(int.from_bytes(first, "big") / 2**64, _LARGEST)  # a float has 53 bits: the top 2^10 would round to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How one experiment divides its units. Plain fields only: it is stored as JSON."""

    salt: str
    """Fixed for the experiment's life; no NUL, which separates it from the unit."""
    arms: tuple[str, ...]
    """In a fixed order, the control first."""
    weights: tuple[float, ...]
    """Relative, one per arm; (1, 1) is half and half."""
    share: float = 1.0
    """Part of each arm's stretch that is open. Ramp up by raising it."""

    def __post_init__(self) -> None:
        if not self.salt or "\0" in self.salt:
            raise ConfigError("salt must be a text of at least one character, without NUL.", param="salt")
        if len(set(self.arms)) != len(self.arms) or not self.arms:
            raise ConfigError(f"arms must be different names, got {list(self.arms)}.", param="arms")
        if len(self.weights) != len(self.arms):
            raise ConfigError(f"{len(self.arms)} arms but {len(self.weights)} weights.", param="weights")
        if not all(math.isfinite(w) and w >= 0 for w in self.weights) or sum(self.weights) <= 0:
            raise ConfigError(
                f"weights must be numbers of at least 0, not all 0; got {list(self.weights)}.", param="weights"
            )
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share must be between 0 and 1, got {self.share}.", param="share")

    @property
    def proportions(self) -> tuple[float, ...]:
        """The weights, summing to 1: what the sample-ratio check expects."""
        total = sum(self.weights)
        return tuple(weight / total for weight in self.weights)

    def arm(self, unit: str) -> str | None:
        """The arm of ``unit``, or None while the ramp leaves it outside the experiment."""
        at, start = bucket(self.salt, unit), 0.0
        inside = None
        for name, proportion in zip(self.arms, self.proportions, strict=True):
            if proportion > 0 and at >= start:
                inside = name if at < start + self.share * proportion or self.share == 1 else None
            start += proportion
        return inside
