"""What the library's room does before llama.cpp is loaded, and what of its log a program sees."""

from __future__ import annotations

import logging
import site
import sys
from pathlib import Path

import pytest

from localgemma.llamacpp import library, log

WHEELS = {
    "linux": (
        "nvidia/cuda_runtime/lib/libcudart.so.12",
        "nvidia/cublas/lib/libcublasLt.so.12",
        "nvidia/cublas/lib/libcublas.so.12",
    ),
    "win32": (
        "nvidia/cu13/bin/x86_64/cudart64_13.dll",
        "nvidia/cublas/bin/cublasLt64_12.dll",
        "nvidia/cublas/bin/cublas64_12.dll",
    ),
    "darwin": (),
}


@pytest.mark.parametrize("system", WHEELS)
def test_cuda_of_the_wheels_is_loaded_first(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WHEELS["linux"] + WHEELS["win32"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    opened: list[str] = []
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path / "none"))
    monkeypatch.setattr(library, "_open", opened.append)
    library._preload()
    first = ["libstdc++.so.6"] if system == "linux" else []
    assert opened == [*first, *(str(tmp_path / name) for name in WHEELS[system])]


def test_a_program_without_a_log_sees_no_chatter(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log._receive(4, b"llama_decode: failed to decode, ret = 2\n", None)
    assert log.last_error().endswith("ret = 2")
    assert capsys.readouterr() == ("", "")
    log.clear()
