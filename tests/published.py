"""A small model on the stand-in hub, and the user's models.toml that publishes it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from standin_hub import Hub

from localgemma import settings
from localgemma.files.header import read_header

DEMO = Path(__file__).resolve().parent.parent / "localgemma" / "assets" / "demo"
REPOSITORY = "owner/tiny"
FILES = {"text": "tiny-Q4_K_M.gguf", "projector": "mmproj-tiny.gguf", "drafter": "mtp-tiny.gguf"}


@dataclass
class Published:
    """What is on the hub; `write` puts the catalogue that names it into the configuration folder."""

    hub: Hub
    data: dict[str, bytes]
    replaced: list[str] = field(default_factory=list)

    def write(self, **changes: str) -> None:
        """The catalogue with the hub's present hashes; a change is a field of the text file, as TOML."""
        repo = self.hub.repositories[REPOSITORY]
        blobs = repo.commits[repo.refs["main"]]
        lines = ["[models.tiny]", 'title = "Tiny"', "width = 256", "[models.tiny.publishers.owner]"]
        lines += [f'repository = "{REPOSITORY}"', f'revision = "{repo.refs["main"]}"']
        for role, path in FILES.items():
            fields = {
                "quant": '"Q4_K_M"',
                "path": f'"{path}"',
                "bytes": str(blobs[path].size),
                "sha256": f'"{blobs[path].sha256}"',
            }
            fields |= changes if role == "text" else {}
            entries = ", ".join(f"{key} = {value}" for key, value in fields.items() if value)
            lines.append(f"{role} = [{{ {entries} }}]")
        old = ", ".join(f'{{ path = "{FILES["text"]}", sha256 = "{sha256}" }}' for sha256 in self.replaced)
        lines.append(f"replaced = [{old}]")
        folder = settings.load().config_dir
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "models.toml").write_text("\n".join(lines), encoding="utf-8")


def publish(hub: Hub) -> Published:
    """The demo's files under other names; the projector says nothing of its activation, as published ones do."""
    data = {role: (DEMO / f"{name}.gguf").read_bytes() for role, name in (("text", "text"), ("drafter", "drafter"))}
    data["projector"] = without_entry(DEMO / "mmproj.gguf", "clip.use_gelu")
    for role, path in FILES.items():
        hub.add(REPOSITORY, path, data[role])
    return Published(hub, data)


def without_entry(path: Path, key: str) -> bytes:
    """A GGUF file's bytes without one metadata entry."""
    header, data = read_header(path), path.read_bytes()
    first, end = header.places[key]
    start = data[:16] + struct.pack("<Q", len(header.metadata) - 1) + data[24:first] + data[end : header.header_end]
    return start + bytes(-len(start) % header.alignment) + data[header.data_offset :]


def with_template(data: bytes, template: str, scratch: Path) -> bytes:
    """A GGUF file's bytes with another chat template."""
    return with_text(data, "tokenizer.chat_template", template, scratch)


def with_text(data: bytes, key: str, value: str, scratch: Path) -> bytes:
    """A GGUF file's bytes with another text under a key that it has."""
    scratch.write_bytes(data)
    header = read_header(scratch)
    first, end = header.places[key]
    name, text = key.encode(), value.encode()
    entry = struct.pack("<Q", len(name)) + name + struct.pack("<IQ", 8, len(text)) + text
    start = data[:first] + entry + data[end : header.header_end]
    return start + bytes(-len(start) % header.alignment) + data[header.data_offset :]
