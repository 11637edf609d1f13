"""Renew models.toml from a hub: newest commits, exact sizes and hashes, files that came and went.

    python scripts/refresh_catalog.py [--file models.toml] [--only PUBLISHER]… [--check]

HF_ENDPOINT names the hub. Comments, titles and quality figures stay; a content that was replaced moves to `replaced` with
today's date. --check writes nothing and ends with 1 where something would change. Look at the difference before committing:
a figure measured on a replaced file says so only in its measure's caution.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from localgemma.errors import LocalgemmaError
from localgemma.files import hub
from localgemma.files.catalog_file import is_safe_path
from localgemma.files.facts import quant_of
from localgemma.files.header import kind_of as header_kind
from localgemma.files.hub import Resolved
from localgemma.files.remote import fetch_header

ROLES = ("text", "projector", "drafter")
ORDER = ("quant", "path", "revision", "bytes", "about", "quality", "seen", "sha256")  # of the fields in a line
QUANT = re.compile(r"(?:^|[-_./])((?:UD-)?(?:I?Q\d\w*|BF16|F16|F32|MXFP4\w*|TQ\d_\d))(?=[-.])", re.IGNORECASE)
Table = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Renew the file; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=Path(__file__).resolve().parent.parent / "models.toml")
    parser.add_argument("--only", action="append", metavar="PUBLISHER", help="only this publisher; may be repeated")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where something would change")
    options = parser.parse_args(arguments)
    before = options.file.read_text(encoding="utf-8")
    text = before
    for model, entry in tomllib.loads(before)["models"].items():
        for name, table in entry["publishers"].items():
            if "repository" not in table or (options.only and name not in options.only):
                continue
            try:
                listing = hub.list_files(table["repository"])
            except LocalgemmaError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return error.exit_code
            renewed, notes = renew(table, listing, datetime.date.today().isoformat())
            for note in notes:
                print(f"{name}: {note}")
            text = rewritten(text, f"[models.{model}.publishers.{name}]", renewed)
    tomllib.loads(text)
    if text != before and not options.check:
        options.file.write_text(text, encoding="utf-8")
    return int(options.check and text != before)


def renew(table: Table, listing: Sequence[Resolved], today: str) -> tuple[Table, list[str]]:
    """The publisher's table as the hub has it now, and what changed, in sentences."""
    there = {file.remote.path: file for file in listing if is_safe_path(file.remote.path)}
    renewed: Table = {"revision": listing[0].commit if listing else table.get("revision", "")}
    replaced, notes = list(table.get("replaced", ())), []
    known: set[str] = set()
    for role in ROLES:
        files = []
        for old in table.get(role, ()):
            known.add(old["path"])
            found = there.get(old["path"])
            if "revision" in old:
                files.append(old)
            elif found is None:
                notes.append(f"{old['path']} is gone")
            else:
                files.append(_renewed(old, found))
                if old.get("sha256", found.sha256) != found.sha256:
                    notes.append(f"{old['path']} was replaced")
                    replaced.append({"path": old["path"], "seen": today, "sha256": old["sha256"]})
        renewed[role] = files
    for path, found in there.items():
        if path in known or "imatrix" in path:
            continue
        role, quant = kind_of(path)
        if not role:
            role, quant = by_header(found)
        if role:
            notes.append(f"{path} is new")
            renewed[role].append(_renewed({"quant": quant, "path": path}, found))
    renewed["text"].sort(key=lambda file: (file.get("bytes", 0), file["path"]))
    renewed["replaced"] = replaced
    return renewed, notes


def kind_of(path: str) -> tuple[str, str]:
    """(role, quantisation) by a file's name; both empty where it names no quantisation."""
    name = path.rpartition("/")[2].lower()
    found = QUANT.search(path.rpartition("/")[2]) or QUANT.search(path)
    if not found:
        return "", ""
    quant = found[1].upper()
    if "mmproj" in name:
        return "projector", quant
    return ("drafter" if name.startswith("mtp") or "assistant" in name else "text"), quant


def by_header(found: Resolved) -> tuple[str, str]:
    """(role, quantisation) by a file's header; both empty for what the catalogue has no place for."""
    try:
        header = fetch_header(found)
    except LocalgemmaError:
        return "", ""
    return (kind, quant_of(header)) if (kind := header_kind(header)) in ROLES else ("", "")


def _renewed(old: Table, found: Resolved) -> Table:
    new = {key: value for key, value in old.items() if key not in ("about", "bytes", "sha256")}
    new["bytes"] = found.size
    return new | ({"sha256": found.sha256} if found.sha256 else {})


def rewritten(text: str, heading: str, renewed: Table) -> str:
    """The file's text with this table's revision and lists renewed, everything else as it was."""
    start = text.index(heading) + len(heading)
    end = text.find("\n[", start)
    body = text[start : end if end >= 0 else len(text)]
    body = _with_line(body, "revision", f'revision = "{renewed["revision"]}"', after="repository")
    for key in (*ROLES, "replaced"):
        lines = _lines(renewed[key])
        block = f"{key} = [\n{lines}]" if lines else ""
        body = _with_line(body, key, block, after="")
    return text[:start] + body + (text[end:] if end >= 0 else "")


def _with_line(body: str, key: str, new: str, after: str) -> str:
    """The table's text with the value of `key` replaced, or put behind `after` (at the end where that is empty)."""
    found = re.search(rf"^{key} = (?:\[\n.*?^\]|.*?)$", body, re.MULTILINE | re.DOTALL)
    if found:
        return body[: found.start()] + new + body[found.end() :] if new else body[: found.start()] + body[found.end() + 1 :]
    if not new:
        return body
    place = re.search(rf"^{after} = .*$", body, re.MULTILINE) if after else None
    at = place.end() if place else len(body.rstrip("\n"))
    return f"{body[:at]}\n{new}{body[at:]}"


def _lines(files: Iterable[Table]) -> str:
    """One line a file, the first two columns aligned."""
    rows = [[f"{key} = {_value(key, file[key])}" for key in ORDER if key in file] for file in files]
    widths = [max((len(row[column]) + 1 for row in rows if column < len(row) - 1), default=0) for column in (0, 1)]
    if rows and not rows[0][0].startswith("quant"):
        widths = [0, 0]
    padded = [
        " ".join(f"{cell},".ljust(widths[i] if i < 2 else 0) if i < len(row) - 1 else cell for i, cell in enumerate(row))
        for row in rows
    ]
    return "".join(f"  {{ {line} }},\n" for line in padded)


def _value(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {figure}" for name, figure in value.items()) + " }"
    return f"{value:_}" if key in ("bytes", "about") else f'"{value}"'


if __name__ == "__main__":
    sys.exit(main())
