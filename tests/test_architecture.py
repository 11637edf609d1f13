"""The plan of the house: who may import whom, what only one room may touch, and how large things may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "localgemma"

RECORDS = {"errors", "messages", "options", "settings", "units", "engine", "net", "measured", "whole", "passages"}
LOWER = {"gemma4", "files", "llamacpp", "make", "fit", "chat", "compare"}
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(RECORDS, RECORDS),
    "gemma4": RECORDS,
    "files": RECORDS,
    "llamacpp": RECORDS,
    "make": RECORDS | {"gemma4", "files", "llamacpp"},
    "fit": RECORDS | {"gemma4", "files", "llamacpp"},
    "chat": RECORDS | {"gemma4"},
    "compare": RECORDS | {"gemma4", "chat"},
    "runtime": RECORDS | LOWER,
    "serve": RECORDS | {"gemma4", "files", "chat", "runtime"},
    "embed": RECORDS | {"gemma4", "files", "chat", "runtime"},
    "cli": RECORDS | (LOWER - {"llamacpp"}) | {"runtime", "serve", "embed", "__init__"},
    "__init__": {"runtime"},
    "__main__": {"cli"},
}
ONLY_IN: dict[str, set[str]] = {
    **{name: {"llamacpp"} for name in ("ctypes", "llama_cpp")},
    **{name: {"cli"} for name in ("click", "rich", "prompt_toolkit")},
    **{name: {"net"} for name in ("socket", "urllib.request", "http.client", "httpx", "httpx2", "requests")},
}
MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 300, 60, 8
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """A module's path inside the package, which names a test."""
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    """The room a module is in: its folder, or its own name at the root."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed module."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain, or nothing."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def imports_in(tree: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands; `from a import b` gives `a.b`."""
    package = ("localgemma", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func) in ("importlib.import_module", "import_module", "__import__"):
            names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            yield from ((node.lineno, name) for name in names if isinstance(name, str))


def wrong_imports(tree: ast.Module, path: Path) -> Iterator[str]:
    """Imports of a room that this module may not know."""
    room = room_of(path)
    for line, name in imports_in(tree, path):
        parts = name.split(".")
        if parts[0] != "localgemma":
            continue
        other = parts[1] if len(parts) > 1 and (parts[1] in MAY_IMPORT or (PACKAGE / parts[1]).exists()) else "__init__"
        if other == "__init__" and parts[1:] == ["__version__"]:
            continue
        if other != room and other not in MAY_IMPORT.get(room, set()):
            yield f"{name_of(path)}:{line}: {room} may not import {name}"


def misplaced(tree: ast.Module, path: Path) -> Iterator[str]:
    """Libraries and environment reads outside the only room that may have them."""
    room = room_of(path)
    for line, name in imports_in(tree, path):
        for library, rooms in ONLY_IN.items():
            if (name == library or name.startswith(library + ".")) and room not in rooms:
                yield f"{name_of(path)}:{line}: {library} belongs in {', '.join(sorted(rooms))}"
        if name in ("os.environ", "os.getenv", "os.putenv", "os.environb") and room != "settings":
            yield f"{name_of(path)}:{line}: {name} belongs in settings"
    if room != "settings":
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.getenv", "os.putenv", "os.environb"):
                yield f"{name_of(path)}:{node.lineno}: {dotted(node)} belongs in settings"


def is_click_callback(node: Function) -> bool:
    """A function with a click decorator, whose parameters are its options."""
    heads = [dotted(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list]
    return any(head.startswith("click.") or head.endswith((".command", ".group")) for head in heads)


def too_large(tree: ast.Module, path: Path, lines: int) -> Iterator[str]:
    """Modules and functions beyond their size."""
    if lines > MAX_MODULE_LINES:
        yield f"{name_of(path)}: {lines} lines, the most is {MAX_MODULE_LINES}"
    for node in ast.walk(tree):
        if not isinstance(node, Function):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION_LINES:
            yield f"{name_of(path)}:{node.lineno}: {node.name} has {length} lines, the most is {MAX_FUNCTION_LINES}"
        a = node.args
        names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs) if arg.arg not in ("self", "cls")]
        count = len(names) + bool(a.vararg) + bool(a.kwarg)
        if count > MAX_PARAMETERS and not (room_of(path) == "cli" and is_click_callback(node)):
            yield f"{name_of(path)}:{node.lineno}: {node.name} has {count} parameters, the most is {MAX_PARAMETERS}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_keeps_to_its_room(path: Path) -> None:
    tree = tree_of(path)
    assert room_of(path) in MAY_IMPORT, "a new room: say in MAY_IMPORT what it may import"
    found = [*wrong_imports(tree, path), *misplaced(tree, path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_is_small_and_explained(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"
    found = list(too_large(tree, path, len(path.read_text(encoding="utf-8").splitlines())))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("where", "code", "wrong"),
    [
        ("errors.py", "from localgemma.chat import guard", True),
        ("errors.py", "import localgemma.gemma4.tokens", True),
        ("chat/x.py", "from localgemma.llamacpp import library", True),
        ("chat/x.py", "def f():\n    from ..files import header", True),
        ("chat/x.py", "from ..gemma4 import tokens\nfrom . import guard", False),
        ("cli/x.py", "from localgemma.llamacpp.library import load", True),
        ("cli/x.py", "import click, rich.table\nfrom localgemma import runtime, __version__", False),
        ("chat/x.py", "import click", True),
        ("runtime.py", "import ctypes", True),
        ("runtime.py", "importlib.import_module('llama_cpp')", True),
        ("llamacpp/x.py", "import llama_cpp, ctypes", False),
        ("files/x.py", "import os\nos.environ['A']", True),
        ("files/x.py", "from os import getenv", True),
        ("settings.py", "import os\nos.environ['A']", False),
        ("files/x.py", "from urllib import request", True),
        ("files/x.py", "from urllib.parse import quote", False),
        ("net.py", "import urllib.request, http.client, socket", False),
    ],
)
def test_the_plan_catches_what_it_should(where: str, code: str, wrong: bool) -> None:
    path, tree = PACKAGE / where, ast.parse(code)
    assert bool([*wrong_imports(tree, path), *misplaced(tree, path)]) == wrong


def test_importing_localgemma_loads_no_library() -> None:
    code = "import sys, localgemma; print(*[n for n in ('llama_cpp', 'numpy', 'PIL', 'ctypes.util') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""
