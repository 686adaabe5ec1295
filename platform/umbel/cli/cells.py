"""How metrics, aliases and tags look inside a table's cell."""

from collections.abc import Mapping, Sequence


def number(value: float) -> str:
    """Four significant digits, a whole number as it is."""
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.4g}"


def setting(value: object) -> str:
    """A value of a config: lists without their brackets, floats without noise."""
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value))
    return number(value) if isinstance(value, float) else str(value)


def metrics(values: Mapping[str, float], asked: Sequence[str] = (), most: int = 2) -> str:
    """``accuracy 0.812``: those that were asked for, or else ``most`` of them."""
    keys = [key for key in asked if key in values] or sorted(values, key=_interest)[:most]
    return ", ".join(f"{key} {number(values[key])}" for key in keys)


def aliases(pointers: Mapping[str, int]) -> str:
    return " ".join(f"{alias}:{number}" for alias, number in pointers.items())


def tags(values: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())


_LATER = ("exact_match", "calibration_error", "forgetting", "probe_accuracy")


def _interest(key: str) -> tuple[bool, bool, str]:
    """How good it is says more than what was minimised or lost by it, a graded score more than all or nothing."""
    return "loss" in key, key in _LATER, key
