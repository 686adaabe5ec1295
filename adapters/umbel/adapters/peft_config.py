"""Reads ``adapter_config.json`` so that no key is ever ignored in silence.

Each key is acted on, or listed as harmless, or refused unless it is null, false, 0 or empty (correctness rule 5).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from umbel.core.errors import AdapterRefused

HARMLESS = (
    "auto_mapping",  # class names to import; nothing is imported here
    "base_model_name_or_path",  # a hint only, often a path of somebody's machine; the fingerprint binds
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
)


class PeftConfig:
    """The raw keys of one folder; ``take`` acts on a key, ``finish`` refuses what nobody took."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self._taken = set(HARMLESS)

    @property
    def peft_type(self) -> str:
        return str(self.raw.get("peft_type"))

    def take(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, or ``default`` where it is absent or null."""
        self._taken.add(key)
        value = self.raw.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; raises AdapterRefused for any other value, or where it is absent and has no default."""
        value = self.take(key, default)
        if type(value) is not int:
            raise self.mistyped(key, value, "a whole number")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.take(key, default)
        if type(value) not in (int, float):
            raise self.mistyped(key, value, "a number")
        return float(value)

    def names(self, key: str, default: Iterable[str] = ()) -> tuple[str, ...]:
        """A list of names. A single string is a pattern in PEFT, and patterns are refused."""
        value = self.take(key, list(default))
        if not isinstance(value, list | tuple | set) or not all(isinstance(name, str) for name in value):
            raise self.mistyped(key, value, "a list of module names")
        return tuple(value)

    def table(self, key: str) -> dict[str, float]:
        """Names to numbers, such as ``rank_pattern``."""
        value = self.take(key, {})
        if not isinstance(value, dict) or not all(type(n) in (int, float) for n in value.values()):
            raise self.mistyped(key, value, "a table of numbers")
        return value

    def mistyped(self, key: str, value: Any, wanted: str) -> AdapterRefused:
        return AdapterRefused(
            f"adapter_config.json has {key} = {json.dumps(value)[:80]}, where {wanted} is needed.",
            code="invalid_adapter_config",
            param=key,
            hint="save the adapter again with PEFT, naming modules one by one",
        )

    def harmless(self, keys: Iterable[str]) -> None:
        """Keys that change nothing about what the weights compute."""
        self._taken.update(keys)

    def only(self, key: str, *allowed: Any) -> None:
        """``key`` may have these values (or be absent); any other is refused by name."""
        self._taken.add(key)
        value = self.raw.get(key)
        if value and value not in allowed:
            raise self._refused(key, value)

    def finish(self) -> None:
        for key, value in self.raw.items():
            if key not in self._taken and value:
                raise self._refused(key, value)

    def one_of(self, key: str, default: str, *others: str) -> Any:
        """One of these words; any other is refused by name."""
        self.only(key, default, *others)
        return self.take(key, default)

    def _refused(self, key: str, value: Any) -> AdapterRefused:
        return AdapterRefused(
            f"adapter_config.json has {key} = {json.dumps(value)[:80]}, not known here for {self.peft_type}.",
            code="unsupported_config_key",
            param=key,
            hint="convert or retrain the adapter without it; ignoring it would change its answers",
        )


def read_peft_config(folder: Path) -> PeftConfig:
    path = folder / "adapter_config.json"
    if not path.is_file():
        pickles = [p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
        raise AdapterRefused(
            f"{folder.name} holds no adapter_config.json.", code="missing_file", hint=_conversion(pickles)
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterRefused(f"adapter_config.json is not JSON: {error}.", code="invalid_adapter_config") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("peft_type"), str):
        raise AdapterRefused("adapter_config.json names no peft_type.", code="invalid_adapter_config")
    return PeftConfig(raw)


def _conversion(pickles: list[str]) -> str:
    if not pickles:
        return "point at a folder that PEFT's save_pretrained made"
    return f"{pickles[0]} may run code when loaded; save the adapter again with safe_serialization=True"
