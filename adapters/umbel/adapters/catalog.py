"""Every method and output head there is, found by looking into the folders ``methods/`` and ``heads/``.

Adding a method is adding a file. Nothing outside this package knows a method's name except through here.
"""

import importlib
import pkgutil
from dataclasses import MISSING, fields
from difflib import get_close_matches
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from umbel.adapters import heads as heads_folder
from umbel.adapters import methods as methods_folder
from umbel.adapters.head import Head
from umbel.adapters.method import Method
from umbel.core.contract import OutputHead
from umbel.core.errors import ConfigError

_EXTRA: dict[str, Method] = {}


@cache
def _found_methods() -> dict[str, Method]:
    found: dict[str, Method] = {}
    for module in pkgutil.iter_modules(methods_folder.__path__):
        method = importlib.import_module(f"{methods_folder.__name__}.{module.name}").METHOD
        _add(found, method)
    return found


@cache
def heads() -> dict[OutputHead, type[Head]]:
    """Output heads by name."""
    modules = pkgutil.iter_modules(heads_folder.__path__)
    found = [importlib.import_module(f"{heads_folder.__name__}.{module.name}").HEAD for module in modules]
    return {head.kind: head for head in found}


def methods() -> dict[str, Method]:
    """Methods by name: those of the folder, and those registered by a plug-in."""
    return {**_found_methods(), **_EXTRA}


def register(method: Method) -> None:
    """Adds a method that lives outside the folder. A name or PEFT type that is taken is refused."""
    _add({**methods()}, method)
    _EXTRA[method.name] = method


def unregister(name: str) -> None:
    _EXTRA.pop(name, None)


def _add(found: dict[str, Method], method: Method) -> None:
    if method.name in found or (method.peft_type and method.peft_type in {m.peft_type for m in found.values()}):
        raise ValueError(f"method {method.name!r} (PEFT {method.peft_type}) is already in the catalog")
    found[method.name] = method


def method(name: str) -> Method:
    try:
        return methods()[name]
    except KeyError:
        near = get_close_matches(name, methods(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted(methods()))}"
        raise ConfigError(f"there is no method {name!r}.", code="unknown_method", param="method", hint=hint) from None


def head(kind: OutputHead) -> type[Head]:
    try:
        return heads()[kind]
    except KeyError:
        raise ConfigError(f"there is no output head {kind!r}.", code="unknown_output_head") from None


def configure(name: str, options: dict[str, Any]) -> Any:
    """The method's config from plain options; an unknown key is an error that lists the known ones."""
    config = method(name).config
    known = {field.name: field for field in fields(config)}
    if unknown := sorted(options.keys() - known.keys()):
        raise ConfigError(
            f"method {name!r} has no option {unknown[0]!r}.",
            code="unknown_option",
            param=unknown[0],
            hint=f"its options are {', '.join(known) or 'none'}",
        )
    if missing := [
        n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in options
    ]:
        raise ConfigError(f"method {name!r} needs {missing[0]!r}.", param=missing[0])
    return config(**{key: _typed(config, key, value) for key, value in options.items()})


def _typed(config: type[Any], key: str, value: Any) -> Any:
    """The value as the field's own type: "8" from a command line is 8, a JSON list is a tuple; "eight" is an error."""
    try:
        return _adapter_of(config, key).validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        said = error.errors()[0]["msg"].replace("Input should", "it should")
        raise ConfigError(f"{key} = {value!r} is not one: {said}.", code="invalid_option", param=key) from None


@cache
def _adapter_of(config: type[Any], key: str) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(config)[key])
