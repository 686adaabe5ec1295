"""Conditions of the machine and of what is installed on it."""

import importlib.metadata
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from umbel.cli.console import human_bytes, human_number, human_time
from umbel.cli.doctor.condition import Condition, Finding, State, failed, fine, skipped, warning
from umbel.cli.doctor.patient import Patient, Skip
from umbel.core.clock import now_ms
from umbel.core.cores import cores

OLDEST_PYTHON = (3, 11)
LEAST_FILES, FEW_FILES = 256, 1024
"""Open files: below the first a server cannot work, below the second not with many clients."""
LEAST_MEMORY, LITTLE_MEMORY = 500_000_000, 2_000_000_000
WRITTEN_MS = 1_767_225_600_000
"""2026-01-01: no clock that is right says less."""
AHEAD_MS = 300_000
"""How far two clocks may lie apart."""
MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")


def python_version(_: Patient) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        return failed(f"{version} is too old", "install Python 3.11 or newer, then: make clean setup")
    return fine(f"{version} at {sys.executable}")


def package_versions(_: Patient) -> Finding:
    """What is installed must be in the ranges of umbel's own metadata; what an extra would bring may be missing."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return skipped("needs the package packaging")
    wanted = map(Requirement, importlib.metadata.requires("umbel") or ())
    if wrong := list(dict.fromkeys(filter(None, map(_mismatch, wanted)))):
        return failed("; ".join(wrong), "pip install --upgrade umbel")
    return fine(f"umbel {importlib.metadata.version('umbel')}, every package in its range")


def _mismatch(requirement: Any) -> str | None:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return None if "extra" in str(requirement.marker) else f"{requirement.name} is missing"
    within = requirement.specifier.contains(version, prereleases=True)
    return None if within else f"{requirement.name} {version} is not {requirement.specifier}"


def pip_there(_: Patient) -> Finding:
    if find_spec("pip") is None:
        return warning("missing, and umbel pull fetches with it", f"{sys.executable} -m ensurepip")
    return fine(importlib.metadata.version("pip"))


def torch_build(_: Patient) -> Finding:
    try:
        import torch
    except ImportError:
        return failed("torch is missing: this machine can only be a client", "pip install 'umbel[serve,train]'")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    if torch.version.cuda and not torch.cuda.is_available():
        return warning(f"{torch.__version__} is a CUDA build but finds no GPU", "check nvidia-smi, or serve on the CPU")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return fine(f"{torch.__version__}, {', '.join([build, *gpus])}")


def processor(patient: Patient) -> Finding:
    """Whether there is what makes decoding on a CPU fast: oneDNN's packed weights, or the kernels' own."""
    torch = _torch()
    from umbel.adapters.wide_products import multiplies_bf16
    from umbel.backbone.linears import can_pack

    cpu = torch.device("cpu")
    name = torch.cpu.get_capabilities().get("cpu_name") or "this processor"
    if not can_pack(torch.float32, cpu):
        return warning(f"{name}: oneDNN is not there, so decoding is slow", "install torch's own CPU build")
    if not multiplies_bf16() or not can_pack(torch.bfloat16, cpu):
        if kernels(patient).state is State.OK:
            return fine(f"{name}: it does not multiply bf16, so weights of bf16 are multiplied as fp32")
        fix = "umbel serve --dtype fp32 is faster here"
        return warning(f"{name}: it does not multiply bf16, which is slow without kernels", fix)
    return fine(f"{name}: oneDNN packs bf16 and fp32")


def kernels(patient: Patient) -> Finding:
    """Whether the step's kernels are compiled; without them torch does their work, more slowly."""
    _torch()
    from umbel.backbone.native import Kernels
    from umbel.core.errors import Unavailable

    if patient.settings.kernels == "off":
        return warning("switched off, so that decoding on a CPU is slower", "unset UMBEL_KERNELS")
    with tempfile.TemporaryDirectory() as scratch:  # a home that is not there is not made by asking how it is
        cache = patient.settings.cache / "kernels" if patient.settings.home.is_dir() else Path(scratch)
        try:
            found = Kernels.load(cache)
        except Unavailable as error:
            return warning(f"{error.message} Decoding on a CPU is slower without", error.hint or "install gcc")
    return fine(f"compiled: {found.path.name}")


def threads(_: Patient) -> Finding:
    torch = _torch()
    cores, used = _cores(), torch.get_num_threads()
    text = f"{human_number(used, 'thread')} on {human_number(cores, 'core')}"
    if used > cores:
        named = os.environ.get("OMP_NUM_THREADS")
        because = f" (OMP_NUM_THREADS={named})" if named else ""
        return warning(f"{text}{because}: they wait for each other", f"export OMP_NUM_THREADS={cores}")
    load = os.getloadavg()[0]
    if load > 2 * cores and _yields():
        return fine(f"{text}, as it should be with a load of {load:.0f} from other work")
    if load > 2 * cores:
        fix = "end what is not needed, or export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE"
        return warning(f"{text}, with a load of {load:.0f} from other work", fix)
    return fine(text)


def _yields() -> bool:
    """Whether the environment says already what would be advised beside other work."""
    return os.environ.get("OMP_NUM_THREADS") == "1" and os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"


def memory(patient: Patient) -> Finding:
    free = _free_memory()
    if free is None:
        return skipped(f"{MEMINFO} cannot be read")
    largest = max((backbone.bytes for backbone in patient.installed), default=0)
    text = f"{human_bytes(free)} free"
    if free < max(LEAST_MEMORY, largest):
        need = f"; the largest backbone takes {human_bytes(largest)}" if largest else ""
        return failed(f"{text}{need}", "end other programs, or use a smaller backbone")
    if free < max(LITTLE_MEMORY, 2 * largest):
        return warning(text, "serve with less: --kv-bytes 256MB --adapter-bytes 128MB")
    return fine(text)


def terminal(_: Patient) -> Finding:
    encoding = sys.stdout.encoding or "ascii"
    try:
        "█⠿é".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return warning(f"prints {encoding}, so curves and names may break", "export PYTHONUTF8=1")
    return fine(f"prints {encoding}")


def open_files(_: Patient) -> Finding:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = min(65_536, hard) if hard > 0 else 65_536
    text = "any number may be open" if soft < 0 else f"{soft} may be open at once"
    if 0 <= soft < LEAST_FILES:
        return failed(text, f"ulimit -n {more}")
    return warning(f"{text}, one per client", f"ulimit -n {more}") if 0 <= soft < FEW_FILES else fine(text)


def clock(patient: Patient) -> Finding:
    """Against the year and the newest row of the registry; only one clock is at hand, so being ahead goes unseen."""
    now = now_ms()
    fix = "set it: timedatectl set-ntp true"
    if now < WRITTEN_MS:
        return failed(f"{human_time(now)} is in the past", fix)
    newest = _newest(patient)
    if newest > now + AHEAD_MS:
        return failed(f"{human_time(now)}, but the registry was written at {human_time(newest)}", fix)
    return fine(human_time(now))


def offline(_: Patient) -> Finding:
    """Whether what the user said about the network is what the Hugging Face libraries will do."""
    said = {name: os.environ[name] for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)}
    try:
        from huggingface_hub.constants import HF_HUB_OFFLINE
    except ImportError:
        return skipped("needs huggingface_hub")
    wanted = any(value.upper() not in ("0", "NO", "OFF", "FALSE") for value in said.values())
    if wanted and not HF_HUB_OFFLINE:
        told = ", ".join(f"{name}={value}" for name, value in said.items())
        return warning(f"{told} is not understood: the hub would be asked", "export HF_HUB_OFFLINE=1")
    return fine("HF_HUB_OFFLINE holds: no hub is asked" if HF_HUB_OFFLINE else "a hub is asked for hf: names only")


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise Skip("needs torch") from None
    return torch


def _cores() -> int:
    """Those this process may use: by affinity, and by the quota of its container."""
    usable = cores()
    quota = _cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        usable = min(usable, max(1, round(int(quota[0]) / int(quota[1]))))
    return usable


def _free_memory() -> int | None:
    """Bytes that can be had without swapping; within a container's limit, if there is one."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if free is not None and limit.isdecimal() and used.isdecimal():
        free = min(free, int(limit) - int(used))
    return free


def _cgroup(name: str) -> str:
    try:
        return (CGROUPS / name).read_text().strip()
    except OSError:
        return ""


def _newest(patient: Patient) -> int:
    from umbel.registry.query import AdapterQuery

    try:
        newest = patient.registry.adapters.list(AdapterQuery(sort="created", descending=True), limit=1).items
    except Skip:
        return 0
    return max((adapter.shown.created_at if adapter.shown else adapter.created_at for adapter in newest), default=0)


CONDITIONS = (
    Condition("python", python_version),
    Condition("packages", package_versions),
    Condition("pip", pip_there),
    Condition("torch", torch_build),
    Condition("processor", processor),
    Condition("kernels", kernels),
    Condition("threads", threads),
    Condition("memory", memory),
    Condition("open files", open_files),
    Condition("terminal", terminal),
    Condition("clock", clock),
    Condition("offline", offline),
)
