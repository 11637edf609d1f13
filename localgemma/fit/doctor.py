"""What this machine has and what usually goes wrong on such machines, each trap with the command that mends it."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localgemma import settings
from localgemma.errors import DoesNotFit, LibraryError
from localgemma.fit import probe
from localgemma.fit.hardware import Machine
from localgemma.llamacpp import devices, library
from localgemma.units import GIB, MIB, format_size

INSTALL = "Run scripts/bootstrap to install llama.cpp."
REBUILD = (  # not native: AVX2, on x86
    "Run scripts/bootstrap again; or, where pip installed localgemma: CMAKE_ARGS=-DGGML_NATIVE=OFF "
    "pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python=="
)
BOOTSTRAP = "Run scripts/bootstrap, which installs the build for this card."
OLDEST_NVIDIA = 525  # the driver that CUDA 12 needs (NVIDIA's CUDA release notes)
SMALLEST_MODEL = 12 * GIB  # a 2-bit file with a context
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card as the system knows it, whether llama.cpp can use it or not."""

    vendor: str
    name: str
    total: int = 0
    used: int = 0
    driver: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the checks look at. `holders` are programs on a GPU with their bytes; `features` is llama.cpp's own line."""

    machine: Machine | None
    cards: tuple[Card, ...]
    holders: tuple[tuple[str, int], ...]
    features: str
    library_error: str
    library_fix: str
    swap_used: int
    disk_free: int
    wired_limit: int
    offline: bool
    folder: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One result: `ok`, a `warning` or a `problem`; `fix` is what to type or do.

    `code` is the exit code where nothing can be loaded at all.
    """

    level: Literal["ok", "warning", "problem"]
    what: str
    fix: str = ""
    code: int = 0


def gather() -> Facts:
    """Look at this machine; nothing raises."""
    import psutil

    machine, features, fix = None, "", INSTALL
    try:
        machine, features = probe.machine(), devices.system_info()
        error = _dies()
        fix = REBUILD + library.build().split()[0]
    except LibraryError as problem:
        error = problem.message
    folder = settings.load().data_dir
    return Facts(
        machine=machine,
        cards=tuple(_cards()),
        holders=tuple(_holders()),
        features=features,
        library_error=error,
        library_fix=fix,
        swap_used=int(psutil.swap_memory().used),
        disk_free=_disk(folder),
        wired_limit=probe.sysctl("iogpu.wired_limit_mb") * MIB if sys.platform == "darwin" else 0,
        offline=settings.load().offline,
        folder=str(folder),
    )


def _dies() -> str:
    """What is wrong where the demo's answer, in a process of its own, ends by a signal; empty where it does not.

    A build for another processor, or one by a compiler with a fault, dies at its first batch and takes the program along.
    """
    if getattr(sys, "frozen", False):  # in a packaged program there is no Python to start
        return ""
    command = [sys.executable, "-m", "localgemma", "chat", "-m", "demo", "--no-save", "--gpu-layers", "0", "Hello"]
    try:
        code = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False).returncode
    except (OSError, subprocess.SubprocessError):
        return ""
    if 0 <= code < 128:
        return ""
    reason = "an illegal instruction" if code in (-signal.SIGILL, 128 + signal.SIGILL, 0xC000001D) else f"exit code {code}"
    return f"This build of llama.cpp dies on this processor ({reason})."


def _disk(folder: Path) -> int:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free


def _cards() -> Iterator[Card]:
    """Cards from the drivers' tools, and from the kernel's list where there is no tool."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader,nounits"]
    seen = False
    for line in probe.run(query).splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[1].isdigit() and parts[2].isdigit():
            seen = True
            yield Card("NVIDIA", parts[0], int(parts[1]) * MIB, int(parts[2]) * MIB, parts[3])
    for place in sorted(Path("/sys/class/drm").glob("card[0-9]*/device/vendor")):
        try:
            vendor = _VENDORS.get(place.read_text(encoding="ascii").strip(), "")
        except OSError:
            continue
        if vendor and not (vendor == "NVIDIA" and seen):
            yield Card(vendor, f"{vendor} graphics ({place.parts[4]})")


def _holders() -> Iterator[tuple[str, int]]:
    query = ["nvidia-smi", "--query-compute-apps=process_name,used_memory", "--format=csv,noheader,nounits"]
    for line in probe.run(query).splitlines():
        name, _, used = line.rpartition(",")
        if used.strip().isdigit():
            yield Path(name.strip()).name, int(used) * MIB


def examine(facts: Facts) -> list[Finding]:
    """The findings, problems first."""
    found = [*_library(facts), *_graphics(facts), *_memory(facts), *_rest(facts)]
    order = {"problem": 0, "warning": 1, "ok": 2}
    return sorted(found, key=lambda finding: order[finding.level])


def _library(facts: Facts) -> Iterator[Finding]:
    if facts.library_error:
        yield Finding("problem", facts.library_error, facts.library_fix, LibraryError.exit_code)
        return
    arm = re.search(r"NEON = 1|DOTPROD = 1", facts.features)
    if not arm and "AVX2 = 1" not in facts.features:
        what = "llama.cpp runs without AVX2, several times slower than it could on a CPU made since 2015."
        yield Finding(
            "warning", what, "If this CPU has it (it is in its data sheet), run scripts/bootstrap for another build."
        )
    else:
        yield Finding("ok", "llama.cpp is there" + ("" if arm else ", with AVX2"))


def _graphics(facts: Facts) -> Iterator[Finding]:
    gpus = facts.machine.gpus if facts.machine else ()
    for card in facts.cards:
        if card.vendor in ("NVIDIA", "AMD") and not gpus and facts.machine:
            yield Finding("problem", f"There is a card ({card.name}), but this build of llama.cpp cannot use it.", BOOTSTRAP)
        major = card.driver.split(".")[0]
        if card.vendor == "NVIDIA" and major.isdigit() and int(major) < OLDEST_NVIDIA:
            what = f"The NVIDIA driver {card.driver} is too old for CUDA 12."
            yield Finding("problem", what, f"Install driver {OLDEST_NVIDIA} or newer, then restart.")
        held = [f"{name} {format_size(size)}" for name, size in facts.holders if size >= 256 * MIB]
        if card.total and card.used > max(2 * GIB, card.total // 10):
            who = f": {', '.join(held)}" if held else ""
            what = f"Other programs hold {format_size(card.used)} of {card.name}'s {format_size(card.total)}{who}."
            yield Finding("warning", what, "Close them before you load a model; nvidia-smi lists them.")
    for gpu in gpus:
        yield Finding("ok", f"{gpu.name}: {gpu.description}, {format_size(gpu.free)} of {format_size(gpu.total)} free")
    if facts.machine and facts.machine.system == "darwin" and gpus:
        limit, total = facts.wired_limit or gpus[0].total, facts.machine.ram_total
        if limit < total * 7 // 10:
            more = total * 85 // 100 // MIB
            what = f"macOS lets the GPU use {format_size(limit)} of {format_size(total)}."
            yield Finding("warning", what, f"Raise it until the next restart: sudo sysctl iogpu.wired_limit_mb={more}")


def _memory(facts: Facts) -> Iterator[Finding]:
    if not facts.machine:
        return
    machine = facts.machine
    usable = machine.ram_free + (0 if machine.unified else sum(gpu.free for gpu in machine.gpus))
    told = f"{format_size(machine.ram_free)} of {format_size(machine.ram_total)} RAM free"
    if usable < SMALLEST_MODEL:
        what = f"{told}: too little for any file of Gemma 4 31B."
        yield Finding("problem", what, "Close other programs, or try the demo: localgemma chat -m demo", DoesNotFit.exit_code)
    elif machine.ram_free < 3 * GIB:
        yield Finding("warning", f"{told}: a load may push other programs out.", "Close other programs first.")
    else:
        yield Finding("ok", f"{told}, {machine.threads} cores")
    if facts.swap_used > GIB:
        what = f"{format_size(facts.swap_used)} of memory is swapped out; a model that swaps is a hundred times slower."
        yield Finding("warning", what, "Close other programs, or restart, before you load a model.")


def _rest(facts: Facts) -> Iterator[Finding]:
    if facts.disk_free < 25 * GIB:
        what = f"{format_size(facts.disk_free)} are free where models are kept ({facts.folder}); the usual file needs 18 GiB."
        yield Finding("warning", what, "Make room: localgemma models prune; or set LOCALGEMMA_HOME to another disk.")
    else:
        yield Finding("ok", f"{format_size(facts.disk_free)} of disk free for models")
    if facts.offline:
        yield Finding("ok", "offline: no connection is opened")
