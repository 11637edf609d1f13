"""The only reader of the environment: where things live, and whether the network may be used.

| variable | meaning |
| --- | --- |
| LOCALGEMMA_HOME | one folder for configuration, data and cache (default: the platform's own three) |
| LOCALGEMMA_OFFLINE, HF_HUB_OFFLINE | 1: open no connection at all |
| LOCALGEMMA_LOG | debug, info, warning or error: log lines on stderr |
| NO_COLOR, TERM=dumb | no colours and no dimmed text |
| LOCALGEMMA_API_KEY | what `compare --reference https://…` shows the endpoint |
| HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE | as huggingface_hub reads them |
| OLLAMA_MODELS, LLAMA_CACHE | where Ollama and llama.cpp keep models, as they read them |
| LLAMA_CPP_LIB_PATH | the folder of another build of llama.cpp, its vision library included |
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TRUE = {"1", "true", "yes", "on"}


@dataclass(frozen=True, slots=True)
class Settings:
    """The environment as read at one moment; paths need not exist."""

    config_dir: Path
    data_dir: Path
    cache_dir: Path
    hub_cache: Path
    hub_endpoint: str
    hub_token: str | None
    offline: bool
    log_level: str
    styled: bool
    api_key: str | None = None


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process, read anew at each call."""
    env = os.environ if environ is None else environ
    config, data, cache = _folders(env)
    hf_home = Path(env.get("HF_HOME") or Path(env.get("XDG_CACHE_HOME") or _home(env) / ".cache") / "huggingface")
    token = env.get("HF_TOKEN") or _read(Path(env.get("HF_TOKEN_PATH") or hf_home / "token"))
    return Settings(
        config_dir=config,
        data_dir=data,
        cache_dir=cache,
        hub_cache=Path(env.get("HF_HUB_CACHE") or hf_home / "hub"),
        hub_endpoint=(env.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"),
        hub_token=token or None,
        offline=any(env.get(name, "").strip().lower() in _TRUE for name in ("LOCALGEMMA_OFFLINE", "HF_HUB_OFFLINE")),
        log_level=env.get("LOCALGEMMA_LOG", "error").strip().lower() or "error",
        styled=not env.get("NO_COLOR") and env.get("TERM") not in ("dumb", "unknown"),
        api_key=env.get("LOCALGEMMA_API_KEY", "").strip() or None,
    )


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where other programs keep their files on this platform; paths need not exist, None is not set."""

    home: Path
    config: Path
    data: Path
    cache: Path
    ollama: Path | None
    llama_cpp: Path | None


def elsewhere(environ: Mapping[str, str] | None = None) -> Elsewhere:
    """The folders of other programs, read anew at each call."""
    env = os.environ if environ is None else environ
    config, data, cache = _platform_folders(env)
    ollama, llama_cpp = (Path(found) if (found := env.get(name)) else None for name in ("OLLAMA_MODELS", "LLAMA_CACHE"))
    return Elsewhere(_home(env), config, data, cache, ollama, llama_cpp)


def set_default_environment(name: str, value: str) -> None:
    """Give a variable a value for this process and its children, unless it has one."""
    os.environ.setdefault(name, value)


def variable(name: str) -> str | None:
    """A variable by name, as a configuration file (`${TOKEN}` for an MCP server) or a library has it; None if not set."""
    return os.environ.get(name)


def offline_variables() -> dict[str, str]:
    """What tells a child process with an environment of its own that this one is offline."""
    return {"LOCALGEMMA_OFFLINE": "1", "HF_HUB_OFFLINE": "1"} if load().offline else {}


def go_offline() -> None:
    """Forbid connections in this process and its children: what --offline does."""
    os.environ["LOCALGEMMA_OFFLINE"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"


def _home(env: Mapping[str, str]) -> Path:
    return Path(env.get("HOME") or env.get("USERPROFILE") or Path.home())


def _folders(env: Mapping[str, str]) -> tuple[Path, Path, Path]:
    """Our own folders for configuration, data and cache."""
    if own := env.get("LOCALGEMMA_HOME"):
        return Path(own) / "config", Path(own) / "data", Path(own) / "cache"
    config, data, cache = _platform_folders(env)
    if sys.platform == "win32":
        return config / "localgemma", cache / "localgemma" / "data", cache / "localgemma" / "cache"
    return config / "localgemma", data / "localgemma", cache / "localgemma"


def _platform_folders(env: Mapping[str, str]) -> tuple[Path, Path, Path]:
    """The platform's folders for programs' configuration, data and cache."""
    home = _home(env)
    if sys.platform == "win32":
        roaming = Path(env.get("APPDATA") or home / "AppData" / "Roaming")
        return roaming, roaming, Path(env.get("LOCALAPPDATA") or home / "AppData" / "Local")
    if sys.platform == "darwin":
        support = home / "Library" / "Application Support"
        return support, support, home / "Library" / "Caches"
    return (
        Path(env.get("XDG_CONFIG_HOME") or home / ".config"),
        Path(env.get("XDG_DATA_HOME") or home / ".local" / "share"),
        Path(env.get("XDG_CACHE_HOME") or home / ".cache"),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
