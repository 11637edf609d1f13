"""Downloads and verification beside the peers: `hf download` and `sha256sum`, one file on loopback.

    python scripts/bench_files.py [--size 1000] [--repeats 3] [--folder DIR]

SIZE is in MB. The stand-in hub of the tests serves from a process of its own, by sendfile. Each download is a process with an
empty cache in DIR (default: the system's folder for temporary files); contestants take turns and the best time of each counts.
Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from localgemma.files.verify import sha256_of

ROOT = Path(__file__).resolve().parent.parent
OURS = """
import sys
from localgemma.files.download import download
from localgemma.files.hub import RemoteFile, resolve
print(download([resolve(RemoteFile("owner/name", "main", sys.argv[1]))])[0])
"""


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """(seconds, MiB of memory at most) of a command."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{command} ended with status {status}")
    return seconds, usage.ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)


def downloads(folder: Path, file: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Best speed in MB/s and most memory in MiB of each contestant."""
    command = [sys.executable, str(ROOT / "tests" / "standin_hub.py"), str(file)]
    hub = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert hub.stdout and hub.stdin
    contestants = {
        "localgemma": [sys.executable, "-c", OURS, file.name],
        "hf download": [str(Path(sys.executable).parent / "hf"), "download", "owner/name", file.name],
    }
    endpoint, seconds, memory = hub.stdout.readline().strip(), dict.fromkeys(contestants, 1e9), dict.fromkeys(contestants, 0.0)
    try:
        for _ in range(repeats):
            for name, command in contestants.items():
                home = folder / "cache"
                environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
                spent, most = timed(command, environment)
                seconds[name], memory[name] = min(seconds[name], spent), max(memory[name], most)
                assert any(p.stat().st_size == file.stat().st_size for p in home.glob("hub/*/blobs/*")), f"{name} left no file"
                shutil.rmtree(home)
    finally:
        hub.stdin.close()
        hub.wait()
    size = file.stat().st_size / 1e6
    return {name: {"MB/s": round(size / seconds[name], 1), "MiB": round(memory[name], 1)} for name in contestants}


def hashes(file: Path, repeats: int) -> dict[str, float]:
    """Best speed in MB/s of `verify`'s hash and of sha256sum, on a file that is in memory."""
    best = {"verify": 1e9, "sha256sum": 1e9}
    for _ in range(repeats):
        began = time.perf_counter()
        sha256_of(file)
        best["verify"] = min(best["verify"], time.perf_counter() - began)
        if shutil.which("sha256sum"):
            best["sha256sum"] = min(best["sha256sum"], timed(["sha256sum", str(file)], dict(os.environ))[0])
    return {name: round(file.stat().st_size / 1e6 / seconds, 1) for name, seconds in best.items()}


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1000, help="MB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the file and the caches are")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        file = Path(name) / "model.gguf"
        with file.open("wb") as stream:
            for _ in range(asked.size):
                stream.write(os.urandom(1_000_000))
        found = downloads(Path(name), file, asked.repeats)
        hashed = hashes(file, asked.repeats)
    ratio = found["localgemma"]["MB/s"] / found["hf download"]["MB/s"]
    for contestant, values in found.items():
        print(f"{contestant:12} {values['MB/s']:8.1f} MB/s {values['MiB']:7.1f} MiB")
    print(f"{'':12} {ratio:8.2f} of hf download")
    for contestant, speed in hashed.items():
        print(f"{contestant:12} {speed:8.1f} MB/s")
    print(f"{'':12} {hashed['verify'] / hashed['sha256sum']:8.2f} of sha256sum")
    print(json.dumps({"size_mb": asked.size, "download": found, "download_ratio": round(ratio, 3), "hash": hashed}))


if __name__ == "__main__":
    main()
