"""Looks at this machine: devices as llama.cpp sees them, memory that this process may still take, threads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from localgemma import measured
from localgemma.fit.hardware import TYPICAL_RAM, Gpu, Machine, typical_bandwidth
from localgemma.llamacpp import devices

LEAST_RAM = 128 << 20  # llama.cpp ends the process where one of its small allocations fails: with less, nothing begins
_CGROUP = Path("/sys/fs/cgroup")


def machine() -> Machine:
    """This machine. Raises LibraryError where llama.cpp cannot be loaded."""
    free, total = memory()
    gpus = tuple(
        Gpu(d.name, d.description, d.free, d.total, typical_bandwidth(d.total), d.kind == "igpu")
        for d in devices.list_devices()
        if d.kind in ("gpu", "igpu")
    )
    unified = bool(gpus) and all(gpu.integrated or gpu.backend == "Metal" for gpu in gpus)
    seen = Machine(gpus, free, total, TYPICAL_RAM, threads(), unified, system=_system())
    return with_rates(seen, measured.load(seen.key).rates)


def with_rates(seen: Machine, rates: Mapping[str, float]) -> Machine:
    """The machine with the bandwidths that were measured on it: the fastest rate of each device."""

    def best(device: str, otherwise: float) -> float:
        return max((rate for key, rate in rates.items() if key.split(":")[0] == device), default=otherwise)

    gpus = tuple(replace(gpu, bandwidth=best(gpu.name, gpu.bandwidth)) for gpu in seen.gpus)
    return replace(seen, gpus=gpus, ram_bandwidth=best("CPU", seen.ram_bandwidth), measured=bool(rates))


def memory() -> tuple[int, int]:
    """(bytes that this process may still take, bytes of RAM), limits of a container and of the process included."""
    import psutil

    found = psutil.virtual_memory()
    free, total = int(found.available), int(found.total)
    for limit, used in (*_cgroup_limits(_CGROUP, Path("/proc/self/cgroup")), *_process_limit()):
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    return free, total


def _cgroup_limits(root: Path, membership: Path) -> list[tuple[int, int]]:
    """(limit, used) of the control groups this process is in, versions 1 and 2; file pages count as free."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = base / path.strip("/")
        for place in dict.fromkeys((*([folder, *folder.parents] if base in (folder, *folder.parents) else [folder]), base)):
            if base not in (place, *place.parents):
                break
            limit, used = _number(place / names[0]), _number(place / names[1])
            if limit is not None and used is not None and limit < 1 << 60:
                found.append((limit, max(0, used - _stat(place / "memory.stat", names[2]))))
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # `max` is no limit
        return None


def _stat(path: Path, key: str) -> int:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split(" ")[0] == key), 0)


def _process_limit() -> list[tuple[int, int]]:
    """(limit, used) of this process's address space, where the system knows one."""
    try:
        import resource
    except ImportError:
        return []
    import psutil

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return [] if limit == resource.RLIM_INFINITY else [(limit, int(psutil.Process().memory_info().vms))]


def threads() -> int:
    """Threads to evaluate with: the physical cores this process may use; on a Mac the fast ones."""
    import psutil

    if sys.platform == "darwin" and (fast := sysctl("hw.perflevel0.physicalcpu")):
        return fast
    cores = psutil.cpu_count(logical=False) or devices.default_threads()
    return max(1, min(cores, len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else cores))


def resident() -> int:
    """Bytes of RAM that this process holds."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def sysctl(name: str) -> int:
    """A number that macOS knows; 0 elsewhere."""
    answer = run(["sysctl", "-n", name])
    return int(answer) if answer.isdigit() else 0


def run(command: list[str], timeout: float = 3.0) -> str:
    """What a system tool prints; nothing where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _system() -> Literal["linux", "darwin", "win32"]:
    return "darwin" if sys.platform == "darwin" else "win32" if sys.platform == "win32" else "linux"
