"""Make .venv and install localgemma with the llama.cpp build that suits this machine.

Standard library only. A stamp, .venv/.localgemma.json, is written last: with it a second run only checks, without it (a
run that was cut half way) the next run repairs.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes.util
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".localgemma.json"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
WHEELS = "https://abetlen.github.io/llama-cpp-python/whl/"
CUDA_WHEELS = ((13, 2), (13, 1), (13, 0), (12, 6), (12, 5), (12, 4), (12, 3), (12, 2), (12, 1))
CUDA_RUNTIME = {
    12: ("nvidia-cuda-runtime-cu12>=12.1,<13", "nvidia-cublas-cu12>=12.1,<13"),
    13: ("nvidia-cuda-runtime>=13,<14", "nvidia-cublas>=13,<14"),
}
BACKENDS = ("cpu", "cuda", "metal", "rocm", "vulkan")
CMAKE = {
    "cpu": "",
    "cuda": "-DGGML_CUDA=ON",
    "metal": "-DGGML_METAL=ON",
    "rocm": "-DGGML_HIP=ON",
    "vulkan": "-DGGML_VULKAN=ON",
}
LOAD = """
import ctypes, glob, os, site
wanted = "bin/**/*.dll" if os.name == "nt" else "lib/lib*.so.*"
for folder in site.getsitepackages():
    names = sorted(glob.glob(folder + "/nvidia/**/" + wanted, recursive=True), key=lambda name: "cudart" not in name)
    for name in names * 2:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            pass
import llama_cpp
llama_cpp.llama_backend_init()
"""
EVALUATE = """
import os, tempfile
with tempfile.TemporaryDirectory() as home:
    os.environ["LOCALGEMMA_HOME"] = home
    import localgemma
    with localgemma.open("demo") as model:
        model.chat().ask("What is the capital of France?", max_tokens=4)
"""
AMX = ROOT / "scripts" / "gcc_amx.h"


class SetupError(Exception):
    """One sentence that says what is missing and what to do."""


@dataclass(frozen=True)
class Choice:
    """A backend and why it was chosen; `cuda` is the newest CUDA version that the driver runs."""

    backend: str
    why: str
    cuda: tuple[int, int] | None = None


class Talk:
    """What the person sees of it; nothing when quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One line, at once."""
        if not self.quiet:
            print(text, flush=True)


# ---------------------------------------------------------------- what this machine has


def nvidia_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the NVIDIA driver runs, or None."""
    if not shutil.which("nvidia-smi"):
        return None
    try:
        done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_nvidia_smi(done.stdout) if done.returncode == 0 else None


def parse_nvidia_smi(text: str) -> tuple[int, int] | None:
    """The CUDA version in the head of nvidia-smi's table."""
    found = re.search(r"CUDA(?: UMD)? Version\s*:\s*(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def choices(forced: str | None) -> list[Choice]:
    """The backends to try, best first; a forced one is the only one."""
    cuda = nvidia_cuda()
    if forced:
        return [Choice(forced, "asked for with --backend", cuda)]
    found: list[Choice] = []
    if sys.platform == "darwin" and platform.machine() == "arm64":
        found.append(Choice("metal", "this is an Apple GPU"))
    if cuda:
        found.append(Choice("cuda", f"the NVIDIA driver here runs CUDA {cuda[0]}.{cuda[1]}", cuda))
    elif Path("/dev/kfd").exists() and hip():
        found.append(Choice("rocm", "an AMD GPU and ROCm's compiler were found"))
    elif sys.platform != "darwin" and ctypes.util.find_library("vulkan") and shutil.which("glslc"):
        found.append(Choice("vulkan", "the Vulkan loader and glslc were found, and no other GPU system"))
    why = "the next that works everywhere" if found else "no GPU system that llama.cpp can use was found"
    return [*found, Choice("cpu", why)]


def hip() -> str | None:
    """ROCm's compiler, if it is there."""
    return shutil.which("hipcc") or shutil.which("hipcc", path="/opt/rocm/bin")


def cuda_tags(driver: tuple[int, int] | None) -> list[str]:
    """Names of the CUDA wheel indexes that this driver can run, nearest first."""
    return [f"cu{major}{minor}" for major, minor in CUDA_WHEELS if driver is None or (major, minor) <= driver]


def platform_pattern() -> str:
    """A pattern for the platform tag of a wheel that runs here."""
    machine = platform.machine().lower()
    if sys.platform == "win32":
        return "win_amd64" if machine in ("amd64", "x86_64") else "win_arm64"
    if sys.platform == "darwin":
        return f"macosx_.*{machine}"
    return f"linux.*_{machine}"


def wheel_links(page: str, version: str) -> list[str]:
    """Addresses of wheels of this version for this platform in an index page."""
    fits = re.compile(rf"llama_cpp_python-{re.escape(version)}(?:(?:\+|%2B)[\w.]+)?-[^/]*{platform_pattern()}[^/]*\.whl")
    return [link for link in re.findall(r'href="([^"]+)"', page) if fits.search(link) and "musllinux" not in link]


def find_wheel(choice: Choice, version: str) -> tuple[str, str] | None:
    """(index name, address) of a ready wheel, or None where there is none or the index cannot be reached."""
    names = {"cpu": ["cpu"], "metal": ["metal"], "cuda": cuda_tags(choice.cuda)}.get(choice.backend, [])
    for name in names:
        address = f"{WHEELS}{name}/llama-cpp-python/"
        try:
            with urllib.request.urlopen(address, timeout=8) as reply:
                page = reply.read(4_000_000).decode("utf-8", "replace")
        except urllib.error.HTTPError:
            continue
        except (OSError, ValueError):
            return None
        if links := wheel_links(page, version):
            return name, urllib.parse.urljoin(address, links[0])
    return None


# ---------------------------------------------------------------- system packages


def may_install_system_packages() -> bool:
    """Only as root on a Debian that says CI=true."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return is_root and os.environ.get("CI") == "true" and shutil.which("apt-get") is not None


def apt_install(talk: Talk, *packages: str) -> None:
    """Install Debian packages; a failure shows in what follows."""
    talk.say(f"Installing {', '.join(packages)} with apt-get (CI=true, root)")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", *packages]):
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=False)


def has_compiler() -> bool:
    """A C and a C++ compiler."""
    if sys.platform == "win32":
        return bool(shutil.which("cl") or os.environ.get("VCINSTALLDIR") or vswhere())
    cxx = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    cc = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    return bool(cc and cxx)


def vswhere() -> bool:
    """Whether Visual Studio's finder is installed, which comes with its build tools."""
    base = os.environ.get("PROGRAMFILES(X86)", r"C:\Program Files (x86)")
    return Path(base, "Microsoft Visual Studio", "Installer", "vswhere.exe").exists()


def need_compiler(talk: Talk) -> None:
    """Make sure that llama.cpp can be compiled, or say what to install."""
    if has_compiler():
        return
    if may_install_system_packages():
        apt_install(talk, "cmake", "g++")
        if has_compiler():
            return
    how = "the package g++ or clang of your system"
    if sys.platform == "win32":
        how = "winget install Microsoft.VisualStudio.2022.BuildTools (with the C++ workload)"
    elif sys.platform == "darwin":
        how = "xcode-select --install"
    else:
        known = {
            "apt-get": "sudo apt-get install cmake g++",
            "dnf": "sudo dnf install cmake gcc-c++",
            "pacman": "sudo pacman -S cmake gcc",
            "zypper": "sudo zypper install cmake gcc-c++",
            "apk": "apk add cmake g++",
        }
        how = next((command for tool, command in known.items() if shutil.which(tool)), how)
    raise SetupError(f"llama.cpp has to be compiled here, and there is no C++ compiler: install one with: {how}")


def need_toolkit(backend: str) -> None:
    """The GPU system's own compiler, for a build from source."""
    if backend == "cuda" and not (shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")):
        raise SetupError("No ready CUDA wheel can be had, and nvcc is missing: install nvidia-cuda-toolkit.")
    if backend == "rocm" and not hip():
        raise SetupError("ROCm's compiler hipcc is missing: install the package hipcc (rocm-hip-sdk).")
    if backend == "vulkan" and not shutil.which("glslc"):
        raise SetupError("The shader compiler glslc is missing: install the packages glslc and libvulkan-dev.")
    if backend == "metal" and sys.platform != "darwin":
        raise SetupError("Metal is there on Apple computers only: choose another --backend.")


# ---------------------------------------------------------------- the virtual environment


def runs(python: Path) -> bool:
    """Whether the environment's Python starts, is new enough and has pip."""
    code = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True, timeout=120, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def is_whole(site: Path) -> bool:
    """Whether every installed package has all its files; an install that was cut leaves one that has not."""
    for info in site.glob("*.dist-info"):
        try:
            with open(info / "RECORD", encoding="utf-8", newline="") as record:
                names = [row[0] for row in csv.reader(record) if row]
        except OSError:
            return False
        if any(not name.endswith(".pyc") and not (site / name).exists() for name in names):
            return False
    return not any(site.glob("~*"))


def site_packages() -> Path:
    """Where the environment's packages are."""
    if os.name == "nt":
        return VENV / "Lib" / "site-packages"
    return next(iter(sorted((VENV / "lib").glob("python3*/site-packages"))), VENV / "lib")


def make_venv(talk: Talk) -> None:
    """A working .venv: the one that is there if it is sound, else a new one."""
    if VENV.exists() or VENV.is_symlink():
        if runs(PYTHON) and is_whole(site_packages()):
            return
        talk.say("The .venv here is broken or half made; making it anew")
        if VENV.is_symlink():
            VENV.unlink()
        else:
            shutil.rmtree(VENV)
    talk.say(f"Making .venv with Python {platform.python_version()}")
    command = [sys.executable, "-m", "venv", str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and may_install_system_packages():
        apt_install(talk, "python3-venv", f"python3.{sys.version_info.minor}-venv")
        shutil.rmtree(VENV, ignore_errors=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not runs(PYTHON):
        last = (done.stderr or done.stdout).strip()[-400:]
        raise SetupError(f"Python could not make .venv: install the package python3-venv. It said: {last}")


def pip(*arguments: str, env: dict[str, str] | None = None) -> None:
    """Run pip in the environment; SetupError with its last lines if it fails."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]
    full = {**os.environ, "PIP_PROGRESS_BAR": "off", "PIP_REQUIRE_VIRTUALENV": "false", **(env or {})}
    full.pop("PIP_USER", None)
    full.pop("PIP_TARGET", None)
    full.pop("PYTHONPATH", None)
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    done = subprocess.run(command, env=full, check=False, **output)  # type: ignore[call-overload]
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-25:])
        raise SetupError(f"pip could not do its part; its last lines:\n{last}\n(the command was: pip {' '.join(arguments)})")


# ---------------------------------------------------------------- installing


def pinned_version() -> str:
    """The version of llama-cpp-python that pyproject.toml pins."""
    import tomllib  # new in 3.11; the starting scripts look for such a Python

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in project["dependencies"]:
        if found := re.fullmatch(r"llama-cpp-python==([\w.]+)", line.replace(" ", "")):
            return found[1]
    raise SetupError("pyproject.toml does not pin llama-cpp-python to one version (llama-cpp-python==X).")


def build_environment(backend: str) -> dict[str, str]:
    """Environment for a build from source; each GPU system has a wheel cache of its own, or pip would mix them up."""
    env = {"CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 2)}
    if has_amx():
        env["CXXFLAGS"] = f"{os.environ.get('CXXFLAGS', '')} -include {shlex.quote(str(AMX))}".strip()
    if CMAKE[backend]:
        env["CMAKE_ARGS"] = f"{os.environ.get('CMAKE_ARGS', '')} {CMAKE[backend]}".strip()
        env["FORCE_CMAKE"] = "1"
        show = [str(PYTHON), "-m", "pip", "cache", "dir"]
        cache = subprocess.run(show, capture_output=True, text=True, check=False).stdout.strip()
        env["PIP_CACHE_DIR"] = f"{cache or VENV / 'cache'}-llama-{backend}"
    return env


def has_amx() -> bool:
    """Whether Linux says that this processor has Intel's matrix instructions."""
    try:
        return " amx_tile" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def install_llama(choice: Choice, version: str, before: dict[str, object], talk: Talk) -> str:
    """Install llama-cpp-python for the backend; how it was got."""
    requirement = f"llama-cpp-python=={version}"
    again = [] if before.get("backend") == choice.backend else ["--force-reinstall"]  # what is there may be another build
    if choice.backend == "cpu":
        with contextlib.suppress(SetupError):
            pip("install", "--only-binary=llama-cpp-python", *again, requirement)
            kept = not again and before.get("llama_cpp_python") == version
            return str(before["how"]) if kept else "ready wheel"
    if choice.backend != "cpu" or not has_compiler():
        if found := find_wheel(choice, version):
            name, address = found
            talk.say(f"Installing the ready {name} wheel of llama-cpp-python {version}")
            try:
                pip("install", "--force-reinstall", "--no-deps", address)
                pip("install", requirement)  # what it depends on
                if choice.backend == "cuda":
                    pip("install", *CUDA_RUNTIME[int(name[2:4])])
                return f"ready wheel, {name}"
            except SetupError as error:
                talk.say(f"That wheel could not be used: {error}")
        elif choice.backend in ("cuda", "metal"):
            talk.say(f"No ready {choice.backend} wheel can be had; building from source")
    need_toolkit(choice.backend)
    need_compiler(talk)
    talk.say(f"Building llama-cpp-python {version} for {choice.backend}; the first time takes some minutes")
    fresh = ["--force-reinstall", "--no-deps", "--no-binary=llama-cpp-python"] if choice.backend != "cpu" else again
    pip("install", *fresh, requirement, env=build_environment(choice.backend))
    pip("install", requirement)  # what it depends on
    return "built from source"


def check_load() -> None:
    """Load the library once, in a child process."""
    _child(LOAD, "does not load")


def check_evaluation(choice: Choice, version: str, how: str, talk: Talk) -> None:
    """Have the demo answer in a child process; a build of another day or compiler that dies there is built anew."""
    try:
        _child(EVALUATE, "does not run on this machine")
    except SetupError:
        if choice.backend != "cpu" or how != "built from source":
            raise
        need_compiler(talk)
        talk.say(f"The llama.cpp library that was built earlier does not run here; building llama-cpp-python {version} again")
        fresh = ["--force-reinstall", "--no-deps", "--no-cache-dir", "--no-binary=llama-cpp-python"]
        pip("install", *fresh, f"llama-cpp-python=={version}", env=build_environment("cpu"))
        _child(EVALUATE, "does not run on this machine")


def _child(code: str, what: str) -> None:
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, errors="replace", cwd=VENV, check=False)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise SetupError(f"The llama.cpp library was installed but {what} (exit {done.returncode}):\n{last}")


def install(options: argparse.Namespace, extras: list[str], before: dict[str, object], talk: Talk) -> dict[str, object]:
    """Everything; the stamp's content."""
    make_venv(talk)
    version = pinned_version()
    tried = choices(options.backend)
    for number, choice in enumerate(tried):
        talk.say(f"llama.cpp backend: {choice.backend}, because {choice.why}")
        try:
            how = install_llama(choice, version, before, talk)
            check_load()
            break
        except SetupError as error:
            if number == len(tried) - 1:
                raise
            talk.say(f"{choice.backend} cannot be used: {error}")
            before = {"backend": choice.backend}
    talk.say("Installing localgemma" + (f" with {', '.join(extras)}" if extras else ""))
    pip("install", "-e", f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT))
    check_load()
    check_evaluation(choice, version, how, talk)
    return {
        "hash": inputs_hash(),
        "backend": choice.backend,
        "why": choice.why,
        "how": how,
        "forced": bool(options.backend),
        "extras": extras,
        "llama_cpp_python": version,
        "python": platform.python_version(),
    }


# ---------------------------------------------------------------- the stamp


def inputs_hash() -> str:
    """A hash of what decides the environment."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "scripts/bootstrap.py", "scripts/gcc_amx.h"):
        digest.update((ROOT / name).read_bytes() + b"\0")
    return digest.hexdigest()


def read_stamp() -> dict[str, object]:
    """The stamp, or nothing if it is not there or not one."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def is_current(stamp: dict[str, object], backend: str | None, extras: list[str]) -> bool:
    """Whether the stamp says that all that is asked for is there."""
    had = stamp.get("extras")
    return (
        stamp.get("hash") == inputs_hash()
        and isinstance(had, list)
        and set(extras) <= set(had)
        and backend in (None, stamp.get("backend"))
        and PYTHON.exists()
    )


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One set-up at a time in this folder, where the system has file locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bootstrap", description="Make .venv and install localgemma in it.")
    parser.add_argument("--backend", choices=BACKENDS, help="the llama.cpp build, instead of the one that suits this machine")
    parser.add_argument("--dev", action="store_true", help="also what the tests need")
    parser.add_argument("--extra", action="append", default=[], metavar="NAME", help="also an optional part, such as pdf")
    parser.add_argument("--quiet", action="store_true", help="say nothing where all is set up already")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Set up; the exit status."""
    options = parse(arguments)
    talk = Talk(options.quiet)
    wanted = sorted({*options.extra, *(["dev"] if options.dev else [])})
    started = time.monotonic()
    try:
        with alone():
            before = read_stamp()
            if is_current(before, options.backend, wanted):
                talk.say(f"Already set up: llama.cpp {before['backend']} ({before['how']}), because {before['why']}")
                return 0
            talk = Talk(quiet=False)  # minutes of silence look like a hang
            had = before.get("extras")
            extras = sorted({*wanted, *(had if isinstance(had, list) else [])})
            if before.get("forced") and not options.backend:
                options.backend = before["backend"]  # a choice that was made once is kept
            STAMP.unlink(missing_ok=True)
            stamp = install(options, extras, before, talk)
            partial = STAMP.with_suffix(".part")
            partial.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
            partial.replace(STAMP)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped half way; run it again to finish.", file=sys.stderr)
        return 130
    talk.say(f"Ready after {time.monotonic() - started:.0f} s: llama.cpp {stamp['backend']} ({stamp['how']}) in .venv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
