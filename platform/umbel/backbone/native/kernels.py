"""Compiles the C files beside this one, once for each machine, and holds the library.

Plain C with the compiler's own vectors: a few seconds to compile, no headers but the compiler's. It shares torch's
OpenMP threads, since that library is loaded already under the name that the compiler links to.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from umbel.core.cores import own_cores, stay_on
from umbel.core.errors import Unavailable
from umbel.core.settings import Settings

_HERE = Path(__file__).parent
_SOURCES = (
    "linear.c",
    "compact.c",
    "lora.c",
    "attention.c",
    "gated.c",
    "prompt.c",
    "pointwise.c",
    "tape.c",
    "threads.c",
)
_HEADERS = (
    "vectors.h",
    "shuffles.h",
    "forms.h",
    "product.h",
    "linear.h",
    "bf16_blocks.h",
    "fp32_blocks.h",
    "scores.h",
    "team.h",
    "tape.h",
)
_RETURN_NOTHING = (
    "umbel_linear", "umbel_compact", "umbel_lora", "umbel_decode", "umbel_gated", "umbel_prompt",
    "umbel_scale", "umbel_likeliest", "umbel_tape", "umbel_alone", "umbel_let_go", "umbel_settle",
)  # fmt: skip
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
_SECONDS = 120
POINTER, COUNT, THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
"""Of the functions' arguments."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The compiled library; its functions' arguments are those of the structures in the engine's ``native_*.py``."""

    library: ctypes.CDLL
    path: Path

    @classmethod
    def load(cls, cache: Path, without: Sequence[str] = ()) -> Self:
        """Compiles into ``cache`` unless it is there. Raises Unavailable (``no_kernels``) where that cannot be done.

        ``without`` some of the processor's instructions (``avx512bf16``), they are those of a lesser one.
        """
        compiler, flags = _compiler(), [*_FLAGS, *(f"-mno-{name}" for name in without)]
        path = cache / f"kernels-{_key(compiler, flags)}.so"
        if not path.is_file():
            _compile(compiler, flags, path)
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise _unavailable(f"{path.name} cannot be loaded: {error}.", "delete it and start again") from error
        for function in _RETURN_NOTHING:
            getattr(library, function).restype = None
        library.umbel_prompt_room.restype = ctypes.c_int64
        library.umbel_prompt_room.argtypes = [ctypes.c_int64] * 3
        library.umbel_linear_room.restype = ctypes.c_int64
        library.umbel_linear_room.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
        return cls(library, path)

    @classmethod
    def wanted(cls, settings: Settings) -> Self | None:
        """As ``UMBEL_KERNELS`` says: off is None; auto is None where they cannot be compiled; on raises then."""
        if settings.kernels == "off":
            return None
        try:
            return cls.load(settings.cache / "kernels")
        except Unavailable:
            if settings.kernels == "on":
                raise
            return None

    @property
    def multiplies(self) -> bool:
        """Whether they have a linear for this processor: where there is AMX or ARM's bf16, oneDNN's is better."""
        return bool(self.library.umbel_has_linear())

    def alone(self) -> None:
        """The calling thread does torch's work and the kernels' by itself from now on.

        Idle threads of its own would be counted beside those of the thread that steps, and make all of them sleep
        between two calls instead of waiting: at one row a step takes half as long again. It runs on the helpers'
        cores (``settle``), so that the thread that steps has one for itself.
        """
        own = _core_of_each_thread()  # sets this thread's number, once
        self.library.umbel_alone()
        stay_on(own[1:])

    def settle(self) -> None:
        """The threads that help the calling one stay on a core each from now on, where every thread has one.

        Two of them on one core take turns of half a millisecond, each waiting for what the other one has begun, and
        nothing parts them while a third thread keeps the other core busy: a step beside a load took seven times as
        long. The calling thread goes where it likes; others may share a helper's core, and are moved from there.
        """
        if own := _core_of_each_thread():
            self.library.umbel_settle((ctypes.c_int * len(own))(*own), ctypes.c_int(len(own)))

    def let_go(self) -> None:
        """The threads that helped the calling one go, until it needs them again."""
        self.library.umbel_let_go()

    def linear_room(self, rows: int, d_in: int, *, codes: bool) -> Tensor:
        """What a linear of up to so many rows and inputs needs beside them, for all threads."""
        each = self.library.umbel_linear_room(rows, d_in, codes)
        return torch.empty(torch.get_num_threads() * each, dtype=torch.uint8)

    @staticmethod
    def fit(dtype: torch.dtype, device: torch.device) -> bool:
        """Whether they can stand in for torch: bf16 on a CPU."""
        return dtype == torch.bfloat16 and device.type == "cpu"


def _core_of_each_thread() -> list[int]:
    """None where there are more threads than cores, or fewer, or one."""
    own, threads = own_cores(), torch.get_num_threads()
    return own if 1 < len(own) == threads else []


def _compiler() -> str:
    """The C compiler's path: ``CC``, or the first of cc, gcc and clang."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return found
    raise _unavailable("there is no C compiler here.", "install gcc or clang, or set CC")


def _key(compiler: str, flags: Sequence[str]) -> str:
    """Of everything that the library depends on: sources, flags, compiler and processor."""
    digest = hashlib.sha256("\0".join([*flags, _version(compiler), platform.machine(), _processor()]).encode())
    for name in (*_HEADERS, *_SOURCES):
        digest.update((_HERE / name).read_bytes())
    return digest.hexdigest()[:16]


def _version(compiler: str) -> str:
    try:
        return subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise _unavailable(f"{compiler} does not run: {error}.", "set CC to one that does") from error


def _processor() -> str:
    """What the processor can do, since ``-march=native`` compiles for that and a home may move."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: str, flags: Sequence[str], path: Path) -> None:
    """Into a file beside it first, so that nobody loads half a library."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".compiling-") as scratch:
        made = Path(scratch) / path.name
        command = [compiler, *flags, *(str(_HERE / name) for name in _SOURCES), "-o", str(made), "-lm"]
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        except subprocess.CalledProcessError as error:
            told = error.stderr.strip().splitlines()
            raise _unavailable(
                f"{compiler} failed: {told[0] if told else error}.", "set CC to gcc 12 or newer"
            ) from error
        except (OSError, subprocess.SubprocessError) as error:
            raise _unavailable(f"{compiler} does not run: {error}.", "set CC to one that does") from error
        made.replace(path)


def _unavailable(what: str, hint: str) -> Unavailable:
    return Unavailable(f"The step's kernels are not compiled: {what}", code="no_kernels", hint=hint)
