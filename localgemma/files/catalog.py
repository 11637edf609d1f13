"""The catalogue: the models that localgemma knows, from models.toml and from the user's own models.toml over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from localgemma import settings
from localgemma.files.catalog_file import CatalogFile, Raw, Where, merged
from localgemma.files.catalog_records import (
    Catalog,
    Entry,
    File,
    Found,
    Measure,
    Name,
    Quality,
    Replaced,
    Role,
    Variant,
    total,
)

__all__ = [
    "PACKAGE",
    "Catalog",
    "Entry",
    "File",
    "Found",
    "Measure",
    "Name",
    "Quality",
    "Replaced",
    "Role",
    "Variant",
    "load",
    "total",
]
PACKAGE = Path(__file__).resolve().parent.parent


def load(own: Path | None = None) -> Catalog:
    """The catalogue with the user's own models.toml over it; UsageError with file, line and field where one is broken."""
    shipped = PACKAGE / "assets" / "models.toml"
    base = CatalogFile(shipped if shipped.is_file() else PACKAGE.parent / "models.toml")
    own = own or settings.load().config_dir / "models.toml"
    return _Builder(base, CatalogFile(own) if own.is_file() else None).catalog()


class _Builder:
    def __init__(self, base: CatalogFile, own: CatalogFile | None) -> None:
        self.base, self.own = base, own
        self.data: Raw = merged(base.data, own.data) if own else base.data
        self.measures = {name: self._measure(name, raw) for name, raw in self.data.get("measures", {}).items()}

    def catalog(self) -> Catalog:
        entries = {name: self._entry(name, raw) for name, raw in self.data.get("models", {}).items()}
        owners: dict[str, str] = {}
        for name, entry in entries.items():
            for alias in (name, *entry.aliases):
                if owners.setdefault(alias.casefold(), name) != name:
                    self.bad(("models", name, "aliases"), f"the name {alias!r} is also that of {owners[alias.casefold()]}")
        return Catalog(entries, self.measures)

    def bad(self, where: Where, what: str) -> NoReturn:
        """A UsageError in the user's file where the table in question is there, else in the one that comes with localgemma."""
        file = self.base
        for end in range(len(where), 1, -1):  # the nearest table that one of the files has; the user's wins
            holder = next((f for f in (self.own, self.base) if f and f.has(where[:end])), None)
            if holder:
                file = holder
                break
        file.bad(where, what)

    def _need(self, raw: Mapping[str, Any], where: Where, *names: str) -> None:
        for name in names:
            if name not in raw:
                self.bad(where, f"it has no {name!r}")

    def _measure(self, name: str, raw: Raw) -> Measure:
        self._need(raw, ("measures", name), "title", "metric", "better")
        return Measure(name, raw["title"], raw["metric"], raw["better"] == "lower", raw.get("caution", ""))

    def _figures(self, raw: Mapping[str, float], where: Where) -> tuple[Quality, ...]:
        for name in raw:
            if name not in self.measures:
                self.bad((*where, name), "there is no such measure")
        return tuple(Quality(float(value), self.measures[name]) for name, value in raw.items())

    def _entry(self, name: str, raw: Raw) -> Entry:
        where: Where = ("models", name)
        self._need(raw, where, "title", "publishers")
        publishers: dict[str, Raw] = raw["publishers"]
        files = {publisher: self._files(where, publisher, table, raw) for publisher, table in publishers.items()}
        variants: list[Variant] = []
        for publisher, table in publishers.items():
            variants += self._variants(name, publisher, table, files)
        if not variants:
            self.bad(where, "none of its publishers has a text file")
        default = raw.get("default", f"{variants[0].quant}@{variants[0].publisher}")
        if default not in [f"{variant.quant}@{variant.publisher}" for variant in variants]:
            self.bad((*where, "default"), f"{default!r} is none of its files")
        return Entry(
            name=name,
            title=raw["title"],
            description=raw.get("description", ""),
            aliases=tuple(raw.get("aliases", ())),
            parameters=raw.get("parameters"),
            width=raw.get("width"),
            default=default,
            default_reason=raw.get("default_reason", "the default"),
            kv={kind: self._figures(raw["kv"][kind], (*where, "kv", kind)) for kind in raw.get("kv", {})},
            variants=tuple(variants),
        )

    def _files(self, model: Where, publisher: str, table: Raw, entry: Raw) -> dict[Role, tuple[File, ...]]:
        where = (*model, "publishers", publisher)
        if ("repository" in table) == ("folder" in table):
            self.bad(where, "it needs either a 'repository' or a 'folder'")
        for index, old in enumerate(table.get("replaced", ())):
            self._need(old, (*where, "replaced", index), "path", "sha256")
        roles: tuple[Role, ...] = ("text", "projector", "drafter")
        return {
            role: tuple(
                self._file(raw, (*where, role, index), publisher, role, table, entry.get("parameters"))
                for index, raw in enumerate(table.get(role, ()))
            )
            for role in roles
        }

    def _file(self, raw: Raw, where: Where, publisher: str, role: Role, table: Raw, parameters: int | None) -> File:
        self._need(raw, where, "path", "quant")
        size = raw.get("bytes") or raw.get("about")
        return File(
            role=role,
            publisher=publisher,
            repository=table.get("repository", ""),
            revision=raw.get("revision", table.get("revision")),
            path=raw["path"],
            quant=raw["quant"],
            bytes=raw.get("bytes"),
            about=raw.get("about"),
            sha256=raw.get("sha256"),
            bits_per_weight=size * 8 / parameters if size and parameters and role == "text" else None,
            quality=self._figures(raw.get("quality", {}), (*where, "quality")),
            folder=self._folder(table["folder"], where[:4]) if "folder" in table else None,
            replaced=tuple(
                Replaced(old["sha256"], old.get("bytes"), old.get("seen", ""))
                for old in table.get("replaced", ())
                if old["path"] == raw["path"]
            ),
        )

    def _folder(self, folder: str, where: Where) -> Path:
        """A folder of the package's, or of the user's beside their models.toml."""
        if self.own and self.own.has((*where, "folder")):
            return self.own.path.parent / Path(folder).expanduser()
        return PACKAGE.parent / folder

    def _variants(
        self, model: str, publisher: str, table: Raw, files: Mapping[str, Mapping[Role, tuple[File, ...]]]
    ) -> list[Variant]:
        where: Where = ("models", model, "publishers", publisher)
        beside: dict[Role, tuple[File, ...]] = {}
        roles: tuple[Role, ...] = ("projector", "drafter")
        for role in roles:
            other = table.get(f"{role}_from", publisher)
            if other not in files:
                self.bad((*where, f"{role}_from"), f"there is no publisher {other!r}")
            beside[role] = files[publisher][role] or files[other][role]
        quants = dict.fromkeys(file.quant for file in files[publisher]["text"])
        return [
            Variant(
                model=model,
                publisher=publisher,
                quant=quant,
                qat=table.get("qat", False),
                text=tuple(file for file in files[publisher]["text"] if file.quant == quant),
                projectors=beside["projector"],
                drafters=beside["drafter"],
            )
            for quant in quants
        ]
