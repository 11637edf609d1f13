"""Fuzzed headers: each is read or refused with a typed error, without a hang and within 512 MiB, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="memory is measured with getrusage")
def test_fuzzed_headers_end_in_a_header_or_a_typed_error(tmp_path: Path, full: bool) -> None:
    count = 20_000 if full else 1_000
    command = [sys.executable, str(HERE / "fuzz_headers.py"), str(tmp_path), "0", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=count, cwd=HERE.parent, check=True)
    result = json.loads(done.stdout)
    print(result)
    assert result["other"] == []
    assert result["read"] + result["refused"] >= count and result["read"] > count // 100
    assert result["longest"] < 10, result  # seconds of the processor: none hangs, on a crowded machine too
    assert result["peak_mib"] < 512, result
