"""Options and fixtures for all tests; nothing here, and no test, needs the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from standin_hub import Hub

ROOT = Path(__file__).resolve().parent.parent
HERMETIC = (
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH"),
    *("LOCALGEMMA_OFFLINE", "LOCALGEMMA_LOG", "LOCALGEMMA_API_KEY"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """--full."""
    parser.addoption("--full", action="store_true", default=False, help="take the slow walks at full length")


def pytest_configure(config: pytest.Config) -> None:
    """Where tests run side by side, each worker keeps to a core: llama.cpp's threads wait for each other on shared ones."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether slow walks go their full length."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session", autouse=True)
def hermetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No proxies, tokens or caches of the person who runs the tests; a LOCALGEMMA_HOME of this session's own."""
    home = tmp_path_factory.mktemp("localgemma-home")
    with pytest.MonkeyPatch.context() as patch:
        for name in HERMETIC:
            patch.delenv(name, raising=False)
        for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_"))]:
            patch.delenv(name)
        patch.setenv("LOCALGEMMA_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared, which is beside a developer's checkout only."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared beside this checkout, and it is not there")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in hub that HF_ENDPOINT names, and an empty hub cache that HF_HOME names."""
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield server
