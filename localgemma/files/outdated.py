"""Whether a file here is what its publisher offers now, and if not, what changed: the weights, or the header alone.

A header that changed is proven by the publisher's own sha256: if the new header (read by range) followed by the weights
that are here has that sha256, then nothing but the header is new, and nothing has to be downloaded to know it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localgemma.engine import CancelToken
from localgemma.errors import Cancelled, ChecksumError
from localgemma.files import cache, hub, ledger
from localgemma.files.header import Header, read_header
from localgemma.files.hub import Resolved
from localgemma.files.imports import parts_of
from localgemma.files.remote import fetch_header
from localgemma.files.store import Held
from localgemma.files.verify import BLOCK, Told, feed_file
from localgemma.whole import disk_errors, make_room, whole_file

Change = Literal["none", "template", "header", "weights", "unknown", "gone"]
TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True, slots=True)
class Finding:
    """One file here against what the hub has under its name: what changed, in a word and in a sentence."""

    held: Held
    newest: Resolved | None
    change: Change
    detail: str

    @property
    def needs_download(self) -> bool:
        """Whether bytes that localgemma uses and does not have are on the hub; it has a chat template of its own."""
        return self.change in ("weights", "unknown")

    @property
    def needs_rebuild(self) -> bool:
        """Whether a new header and the weights that are here make the new file."""
        return self.change == "header"


def newest_of(items: Iterable[Held]) -> dict[tuple[str, str], Resolved]:
    """What the hub has now, by repository and path: one request a repository; raises as `hub.list_files` does."""
    repositories = dict.fromkeys(item.file.repository for item in items if item.file and item.file.repository)
    return {(name, found.remote.path): found for name in repositories for found in hub.list_files(name)}


def compare(
    held: Held, newest: Resolved | None, *, prove: bool = True, told: Told | None = None, cancel: CancelToken | None = None
) -> Finding:
    """What changed between the file here and the hub's newest.

    Where only the header may have changed, `prove` reads the weights that are here (about 1 s a GB). Raises as
    `fetch_header` does, and Cancelled.
    """
    if newest is None:
        return Finding(held, None, "gone", "the publisher has removed it; what is here stays usable")
    if held.sha256 and held.sha256 == newest.sha256:
        return Finding(held, newest, "none", "")
    if len(parts_of(held.path)) > 1:
        return Finding(held, newest, "unknown", "a model in parts is not compared part by part")
    ours, theirs = read_header(held.path), fetch_header(newest)
    if difference := _tensor_difference(ours, theirs):
        return Finding(held, newest, "weights", difference)
    keys = _changed_keys(ours, theirs)
    which = "the chat template" if keys == [TEMPLATE] else f"the header ({', '.join(keys[:4])})" if keys else ""
    if not prove or newest.sha256 is None:
        seen = f"{which} differs" if keys else "the header is the same"
        return Finding(held, newest, "unknown", f"{seen}; whether the weights are the same is not known")
    if _joined_sha256(ours, theirs, told, cancel) != newest.sha256:
        return Finding(held, newest, "weights", "the weights differ, in the same types" + (f", and {which}" if keys else ""))
    if not keys:
        return Finding(held, newest, "none", "")
    return Finding(
        held, newest, "template" if keys == [TEMPLATE] else "header", f"only {which} changed; the weights are the same"
    )


def rebuild(finding: Finding, *, told: Told | None = None, cancel: CancelToken | None = None) -> Path:
    """The new file of a finding that needs no download, made in the hub's cache from the new header and the weights here.

    Raises DiskError, Cancelled, and ChecksumError where the file here was changed meanwhile.
    """
    held, newest = finding.held, finding.newest
    if not finding.needs_rebuild or newest is None:
        raise ValueError(f"{held.name} cannot be rebuilt")
    ours, theirs, blob = read_header(held.path), fetch_header(newest), cache.blob_of(newest)
    make_room(blob.parent, newest.size, f"The new {held.name}")
    digest = hashlib.sha256()
    with disk_errors(f"The new {held.name}", blob.parent), whole_file(blob) as target:
        for source, start, count in ((theirs, 0, theirs.data_offset), (ours, ours.data_offset, ours.file_size)):
            with source.path.open("rb") as stream:
                stream.seek(start)
                while block := stream.read(min(BLOCK, count)):
                    count -= len(block)
                    digest.update(block)
                    target.write(block)
                    if told:
                        told(len(block))
                    if cancel is not None and cancel.cancelled:
                        raise Cancelled("Cancelled.")
        if digest.hexdigest() != newest.sha256:
            raise ChecksumError(f"{held.path.name} was changed meanwhile.", "See what is here with: localgemma models verify")
    with disk_errors(f"The new {held.name}", blob.parent):
        path = cache.place(newest)
        cache.remember(newest)
    known = held.file.sha256 if held.file else None
    ledger.record(path, digest.hexdigest(), fetched=True, supersedes=known if known != newest.sha256 else None)
    return path


def _tensor_difference(ours: Header, theirs: Header) -> str:
    """How the tensor tables differ; empty where they do not."""
    before = {tensor.name: tensor for tensor in ours.tensors}
    after = {tensor.name: tensor for tensor in theirs.tensors}
    if before.keys() != after.keys():
        return f"{len(before.keys() ^ after.keys())} tensors are there in only one of them"
    types = sum(before[name].type_id != after[name].type_id for name in before)
    if types:
        return f"{types} of {len(before)} tensors have another type"
    return "" if ours.tensors == theirs.tensors else "the tensors have other shapes or places"


def _changed_keys(ours: Header, theirs: Header) -> list[str]:
    """Metadata keys whose bytes differ, or that only one of them has."""
    before, after = _entries(ours), _entries(theirs)
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _entries(header: Header) -> dict[str, bytes]:
    with header.path.open("rb") as stream:
        start = stream.read(header.metadata_end)
    return {key: hashlib.sha256(start[first:end]).digest() for key, (first, end) in header.places.items()}


def _joined_sha256(ours: Header, theirs: Header, told: Told | None, cancel: CancelToken | None) -> str:
    """The sha256 of their header followed by our weights."""
    with theirs.path.open("rb") as stream:
        digest = hashlib.sha256(stream.read(theirs.data_offset))
    feed_file(digest, ours.path, ours.data_offset, told, cancel)
    return digest.hexdigest()
