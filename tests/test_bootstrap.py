"""scripts/bootstrap: what it chooses, and that only a finished set-up counts; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "bootstrap.py"


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, working in a folder of its own."""
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    (tmp_path / "scripts").mkdir()
    for name in ("bootstrap.py", "gcc_amx.h"):
        (tmp_path / "scripts" / name).write_bytes((SCRIPT.parent / name).read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    venv = tmp_path / ".venv"
    for name, value in {
        "ROOT": tmp_path,
        "VENV": venv,
        "STAMP": venv / ".localgemma.json",
        "PYTHON": venv / "bin" / "python",
    }.items():
        monkeypatch.setattr(module, name, value)
    for name, value in {"nvidia_cuda": lambda: None, "hip": lambda: None, "has_amx": lambda: False}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module.sys, "platform", "linux")
    return module


def finished(boot: ModuleType, **changes: Any) -> dict[str, Any]:
    """A set-up that has a stamp."""
    boot.PYTHON.parent.mkdir(parents=True, exist_ok=True)
    boot.PYTHON.touch()
    stamp = {"hash": boot.inputs_hash(), "backend": "cpu", "why": "w", "how": "h", "extras": ["dev"], "forced": False}
    stamp |= changes
    boot.STAMP.write_text(json.dumps(stamp), encoding="utf-8")
    return stamp


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("| NVIDIA-SMI 550.54.14   Driver Version: 550.54.14   CUDA Version: 12.4     |", (12, 4)),
        ("| NVIDIA-SMI 590.1   KMD Version: 590.1   CUDA UMD Version: 13.1     |", (13, 1)),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", None),
        ("CUDA Version: N/A", None),
    ],
)
def test_the_cuda_version_is_read(boot: ModuleType, text: str, version: tuple[int, int] | None) -> None:
    assert boot.parse_nvidia_smi(text) == version


def test_cuda_wheels_are_the_nearest_lower_ones(boot: ModuleType) -> None:
    assert boot.cuda_tags((12, 4))[:2] == ["cu124", "cu123"]
    assert boot.cuda_tags((12, 9))[0] == "cu126"
    assert boot.cuda_tags((11, 8)) == []
    assert all(int(tag[2:4]) in boot.CUDA_RUNTIME for tag in boot.cuda_tags(None))


def test_without_a_gpu_it_is_the_cpu(boot: ModuleType) -> None:
    assert [choice.backend for choice in boot.choices(None)] == ["cpu"]


def test_an_nvidia_driver_means_cuda_then_cpu(boot: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "nvidia_cuda", lambda: (12, 5))
    assert [choice.backend for choice in boot.choices(None)] == ["cuda", "cpu"]
    assert "12.5" in boot.choices(None)[0].why


def test_an_apple_gpu_means_metal(boot: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot.sys, "platform", "darwin")
    monkeypatch.setattr(boot.platform, "machine", lambda: "arm64")
    assert [choice.backend for choice in boot.choices(None)] == ["metal", "cpu"]


@pytest.mark.parametrize(("glslc", "backends"), [("/bin/glslc", ["vulkan", "cpu"]), (None, ["cpu"])])
def test_vulkan_needs_its_loader_and_glslc(
    boot: ModuleType, monkeypatch: pytest.MonkeyPatch, glslc: str | None, backends: list[str]
) -> None:
    monkeypatch.setattr(boot.ctypes.util, "find_library", lambda name: "libvulkan.so.1")
    monkeypatch.setattr(boot.shutil, "which", lambda name, path=None: glslc if name == "glslc" else None)
    assert [choice.backend for choice in boot.choices(None)] == backends


@pytest.mark.parametrize("backend", ["cpu", "cuda", "metal", "rocm", "vulkan"])
def test_a_forced_backend_is_the_only_one(boot: ModuleType, backend: str) -> None:
    assert [choice.backend for choice in boot.choices(backend)] == [backend]


PAGE = """
<a href="https://example.org/v1/llama_cpp_python-1.2.3-py3-none-linux_x86_64.whl">a</a>
<a href="https://example.org/v1/llama_cpp_python-1.2.3-py3-none-win_amd64.whl">b</a>
<a href="https://example.org/v1/llama_cpp_python-1.2.30-py3-none-linux_x86_64.whl">c</a>
<a href="https://example.org/v1/llama_cpp_python-1.2.3-py3-none-musllinux_1_2_x86_64.whl">d</a>
<a href="https://example.org/v1/llama_cpp_python-1.2.3-py3-none-manylinux_2_34_aarch64.whl">e</a>
"""


def test_only_a_wheel_of_this_version_and_platform_counts(boot: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [link[-16:] for link in boot.wheel_links(PAGE, "1.2.3")] == ["linux_x86_64.whl"]
    monkeypatch.setattr(boot.platform, "machine", lambda: "aarch64")
    assert boot.wheel_links(PAGE, "1.2.3")[0].endswith("manylinux_2_34_aarch64.whl")
    assert boot.wheel_links(PAGE, "1.2") == []


def test_the_next_lower_index_is_asked_until_one_is_unreachable(boot: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        if "cu124" in address:
            raise urllib.error.HTTPError(address, 404, "Not Found", None, None)  # type: ignore[arg-type]
        return io.BytesIO(PAGE.encode())

    monkeypatch.setattr(boot.urllib.request, "urlopen", answer)
    name, link = boot.find_wheel(boot.Choice("cuda", "", (12, 4)), "1.2.3")
    assert name == "cu123" and link.endswith("1.2.3-py3-none-linux_x86_64.whl")
    assert [re.findall(r"cu\d+", address)[0] for address in asked] == ["cu124", "cu123"]

    def silence(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        raise urllib.error.URLError("no route")

    asked.clear()
    monkeypatch.setattr(boot.urllib.request, "urlopen", silence)
    assert boot.find_wheel(boot.Choice("cuda", "", (12, 4)), "1.2.3") is None
    assert len(asked) == 1


def test_a_missing_compiler_is_one_clear_sentence(boot: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(boot.shutil, "which", lambda name, path=None: "/usr/bin/apt-get" if name == "apt-get" else None)
    with pytest.raises(boot.SetupError, match=r"no C\+\+ compiler: .* sudo apt-get install cmake g\+\+") as caught:
        boot.need_compiler(boot.Talk(True))
    assert "\n" not in str(caught.value)
    for backend in ("cuda", "rocm", "vulkan", "metal"):
        with pytest.raises(boot.SetupError):
            boot.need_toolkit(backend)


def test_the_pinned_version_is_read(boot: ModuleType) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", boot.pinned_version())


def test_a_gpu_build_has_its_own_flags_and_cache(boot: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    boot.PYTHON = Path(sys.executable)
    monkeypatch.setenv("CMAKE_ARGS", "-DX=1")
    env = boot.build_environment("vulkan")
    assert env["CMAKE_ARGS"] == "-DX=1 -DGGML_VULKAN=ON"
    assert env["PIP_CACHE_DIR"].endswith("-llama-vulkan")
    assert "PIP_CACHE_DIR" not in boot.build_environment("cpu")
    assert int(boot.build_environment("cpu")["CMAKE_BUILD_PARALLEL_LEVEL"]) >= 1


def test_on_a_processor_with_amx_an_old_gcc_is_corrected(boot: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CXXFLAGS" not in boot.build_environment("cpu")
    monkeypatch.setattr(boot, "has_amx", lambda: True)
    monkeypatch.setenv("CXXFLAGS", "-g0")
    assert boot.build_environment("cpu")["CXXFLAGS"] == f"-g0 -include {boot.AMX}" and boot.AMX.is_file()


@pytest.mark.skipif(not shutil.which("g++") or platform.machine() != "x86_64", reason="needs g++ for x86-64")
def test_every_byte_of_a_tile_configuration_is_stored(tmp_path: Path) -> None:
    source = tmp_path / "tile.cpp"
    source.write_text(
        """#include <immintrin.h>
        void init() { alignas(64) unsigned char config[64] = {}; config[0] = 1; config[52] = 87; _tile_loadconfig(config); }"""
    )
    header = str(SCRIPT.parent / "gcc_amx.h")
    command = ["g++", "-O3", "-mavx512f", "-mamx-tile", "-include", header, "-S", str(source), "-o", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized" in done.stderr:
        pytest.skip("this g++ does not know AMX")
    assert done.returncode == 0 and "$87" in done.stdout, done.stderr or done.stdout


@pytest.mark.parametrize(
    ("backend", "how"), [("cpu", "built from source"), ("cpu", "ready wheel"), ("cuda", "built from source")]
)
def test_a_build_that_dies_here_is_built_anew(
    boot: ModuleType, monkeypatch: pytest.MonkeyPatch, backend: str, how: str
) -> None:
    """pip keeps what it built: with another compiler, or before this processor's fault was known."""
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(boot, "need_compiler", lambda talk: None)
    monkeypatch.setattr(boot, "pip", lambda *arguments, env=None: calls.append(arguments))

    def child(code: str, what: str) -> None:
        assert code == boot.EVALUATE
        if not calls:
            raise boot.SetupError("The llama.cpp library was installed but does not run on this machine (exit -4).")

    monkeypatch.setattr(boot, "_child", child)
    check = lambda: boot.check_evaluation(boot.Choice(backend, ""), "1.2.3", how, boot.Talk(True))  # noqa: E731
    if (backend, how) == ("cpu", "built from source"):
        check()
        assert len(calls) == 1 and {"--no-cache-dir", "--force-reinstall", "llama-cpp-python==1.2.3"} <= set(calls[0])
        check()
        assert len(calls) == 1, "what runs is left alone"
    else:
        with pytest.raises(boot.SetupError, match="exit -4"):
            check()


@pytest.mark.parametrize("wheel", [("cu124", "https://example.org/a.whl"), None])
def test_a_gpu_build_replaces_what_is_there_and_brings_its_dependencies(
    boot: ModuleType, monkeypatch: pytest.MonkeyPatch, wheel: tuple[str, str] | None
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(boot, "find_wheel", lambda choice, version: wheel)
    monkeypatch.setattr(boot, "pip", lambda *arguments, env=None: calls.append(arguments))
    for name in ("need_toolkit", "need_compiler"):
        monkeypatch.setattr(boot, name, lambda argument: None)
    monkeypatch.setattr(boot, "build_environment", lambda backend: {})
    how = boot.install_llama(boot.Choice("cuda", "", (12, 4)), "1.2.3", {}, boot.Talk(True))
    assert how == ("ready wheel, cu124" if wheel else "built from source")
    assert "--force-reinstall" in calls[0] and calls[0][-1] == (wheel[1] if wheel else "llama-cpp-python==1.2.3")
    assert calls[1] == ("install", "llama-cpp-python==1.2.3")
    assert [call for call in calls if any("cublas" in word for word in call)] == ([calls[2]] if wheel else [])


def test_a_finished_set_up_is_only_checked(boot: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(boot)
    monkeypatch.setattr(boot, "install", lambda *a: pytest.fail("it installed again"))
    assert boot.main(["--dev"]) == 0
    assert boot.main(["--quiet"]) == 0, "what is there may be more than what is asked for"


@pytest.mark.parametrize("what", ["stamp cut", "stamp gone", "other inputs", "python gone", "more extras", "other backend"])
def test_an_unfinished_or_other_set_up_is_done_again(boot: ModuleType, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    stamp = finished(boot)
    arguments = ["--quiet"]
    if what == "stamp cut":
        boot.STAMP.write_text(json.dumps(stamp)[:20], encoding="utf-8")
    elif what == "stamp gone":
        boot.STAMP.unlink()
    elif what == "other inputs":
        with open(boot.ROOT / "pyproject.toml", "a", encoding="utf-8") as file:
            file.write("\n")
    elif what == "python gone":
        boot.PYTHON.unlink()
    elif what == "more extras":
        arguments += ["--extra", "pdf"]
    else:
        arguments += ["--backend", "vulkan"]
    seen: list[list[str]] = []

    def install(options: Any, extras: list[str], before: Any, talk: Any) -> dict[str, Any]:
        assert not boot.STAMP.exists(), "a stamp stands while installing"
        seen.append(extras)
        return stamp | {"hash": boot.inputs_hash(), "extras": extras}

    monkeypatch.setattr(boot, "install", install)
    assert boot.main(arguments) == 0
    assert len(seen) == 1
    assert json.loads(boot.STAMP.read_text(encoding="utf-8"))["extras"] == seen[0]
    if what == "more extras":
        assert seen[0] == ["dev", "pdf"]


@pytest.mark.parametrize("stop", ["error", "interrupt"])
def test_a_set_up_cut_half_way_leaves_no_stamp(
    boot: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop: str
) -> None:
    finished(boot, hash="old")

    def install(*arguments: Any) -> dict[str, Any]:
        raise boot.SetupError("No disk.") if stop == "error" else KeyboardInterrupt

    monkeypatch.setattr(boot, "install", install)
    assert boot.main(["--quiet"]) == (1 if stop == "error" else 130)
    assert not boot.STAMP.exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_only_what_is_set_up_already_is_passed_over_in_silence(
    boot: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run of scripts/demo takes minutes, and says what it does with them."""
    stamp = finished(boot, hash="old")

    def install(options: Any, extras: Any, before: Any, talk: Any) -> dict[str, Any]:
        talk.say("Building")
        return stamp | {"hash": boot.inputs_hash()}

    monkeypatch.setattr(boot, "install", install)
    assert boot.main(["--quiet"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "Building" and last.startswith("Ready after")
    assert boot.main(["--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_a_backend_chosen_once_is_kept(boot: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = finished(boot, hash="old", backend="vulkan", forced=True)
    asked: list[Any] = []
    monkeypatch.setattr(boot, "install", lambda options, *rest: asked.append(options.backend) or stamp)
    assert boot.main(["--quiet"]) == 0
    assert asked == ["vulkan"]


def test_a_gpu_that_cannot_be_used_falls_back_unless_forced(boot: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    boot.VENV.mkdir()
    tried: list[str] = []

    def install_llama(choice: Any, *rest: Any) -> str:
        tried.append(choice.backend)
        if choice.backend == "cuda":
            raise boot.SetupError("nvcc is missing")
        return "built from source"

    for name in ("make_venv", "check_load", "check_evaluation", "pip"):
        monkeypatch.setattr(boot, name, lambda *a, **k: None)
    monkeypatch.setattr(boot, "install_llama", install_llama)
    monkeypatch.setattr(boot, "nvidia_cuda", lambda: (12, 4))
    assert boot.main(["--quiet"]) == 0
    assert tried == ["cuda", "cpu"]
    assert json.loads(boot.STAMP.read_text(encoding="utf-8"))["backend"] == "cpu"
    assert boot.main(["--quiet", "--backend", "cuda"]) == 1
    assert not boot.STAMP.exists()


def test_a_package_without_all_its_files_is_noticed(boot: ModuleType, tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "thing-1.dist-info"
    info.mkdir(parents=True)
    assert not boot.is_whole(site), "no RECORD"
    record = 'thing.py,sha256=x,1\n"__pycache__/thing.pyc",,\nthing-1.dist-info/RECORD,,\n'
    (info / "RECORD").write_text(record, encoding="utf-8")
    assert not boot.is_whole(site), "thing.py is missing"
    (site / "thing.py").touch()
    assert boot.is_whole(site)
    (site / "~hing").mkdir()
    assert not boot.is_whole(site), "what pip leaves when it is stopped"


@pytest.mark.skipif(os.name == "nt", reason="runs the bash script, which Windows does not have")
def test_the_second_run_takes_less_than_two_seconds() -> None:
    if Path(sys.prefix) != ROOT / ".venv" or not (ROOT / ".venv" / ".localgemma.json").exists():
        pytest.skip("needs the .venv that scripts/bootstrap made, and these tests run in another")
    before = os.times()
    done = subprocess.run([ROOT / "scripts" / "bootstrap", "--dev"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Already set up" in done.stdout
    after = os.times()  # of the processor: what a busy machine adds is not the program's
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2


def test_an_unknown_backend_is_refused(boot: ModuleType) -> None:
    with pytest.raises(SystemExit) as caught:
        boot.main(["--backend", "abacus"])
    assert caught.value.code == 2
