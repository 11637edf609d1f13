"""The GGUF header reader: the demo files, made-up files, and files damaged in every way that can be thought of."""

from __future__ import annotations

import os
import struct
import time
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localgemma.errors import BadModelFile, DiskError, LocalgemmaError, NotFound
from localgemma.files import header as h

DEMO = Path(h.__file__).parent.parent / "assets" / "demo"
NAMES = ("text", "drafter", "mmproj")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def tensor(name: str = "a", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def build(
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: int = 0,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int | None, int | None] = (None, None),
) -> bytes:
    n_tensors, n_entries = counts
    numbers = (len(tensors) if n_tensors is None else n_tensors, len(entries) if n_entries is None else n_entries)
    start = magic + struct.pack("<IQQ", version, *numbers) + b"".join(entries) + b"".join(tensors)
    return start + bytes(-len(start) % 32) + bytes(data)


ARCH = entry("general.architecture", 8, text("gemma4"))
LAYERS = entry("gemma4.block_count", 4, struct.pack("<I", 12))
WIDTH = entry("gemma4.embedding_length", 4, struct.pack("<I", 256))
GOOD = build((ARCH, LAYERS, WIDTH), (tensor("a"), tensor("b", offset=32)), 64)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_demo_file_reads_as_the_reference_reads_it(name: str) -> None:
    path = DEMO / f"{name}.gguf"
    header, reader = h.read_header(path), gguf.GGUFReader(path)
    assert header.version == 3 and header.file_size == path.stat().st_size
    assert header.data_offset == reader.data_offset and header.alignment == reader.alignment
    assert [t.name for t in header.tensors] == [t.name for t in reader.tensors]
    for ours, theirs in zip(header.tensors, reader.tensors, strict=True):
        assert ours.shape == tuple(int(n) for n in theirs.shape)
        assert (ours.type_id, ours.nbytes) == (int(theirs.tensor_type), theirs.n_bytes)
        assert header.data_offset + ours.offset == theirs.data_offset
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(header.metadata) == list(fields)
    for key, field in fields.items():
        value, expected = header.metadata[key], field.contents()
        if isinstance(value, h.Array):
            assert header.array_length(key) == len(expected) > h.KEEP
        else:
            assert (list(value) if isinstance(value, tuple) else value) == expected


def test_kinds_and_checks_of_the_demo_files() -> None:
    text_model, drafter, projector = (h.read_header(DEMO / f"{name}.gguf") for name in NAMES)
    assert [h.kind_of(x) for x in (text_model, drafter, projector)] == ["text", "drafter", "projector"]
    h.check_text_model(text_model)
    h.check_drafter(drafter)
    h.check_projector(projector, 256)
    assert text_model.array_length("tokenizer.ggml.tokens") == 4096
    assert text_model.array_length("gemma4.attention.head_count_kv") == 12
    assert text_model.array_length("general.architecture") == text_model.array_length("nothing") == 0
    assert text_model.number("gemma4.block_count") == 12 and text_model.number("tokenizer.ggml.add_bos_token") is None


@pytest.mark.parametrize(
    ("check", "name", "says"),
    [
        (h.check_text_model, "drafter", "is a Gemma 4 drafter, not a Gemma 4 language model"),
        (h.check_text_model, "mmproj", "is a picture projector, not"),
        (h.check_drafter, "text", "is a Gemma 4 language model, not a Gemma 4 drafter"),
        (lambda x: h.check_projector(x, 256), "text", "is a Gemma 4 language model, not a Gemma 4 picture projector"),
        (lambda x: h.check_projector(x, 5376), "mmproj", "model of width 256, and this model's width is 5376"),
    ],
)
def test_a_file_in_the_wrong_place_is_named(check, name: str, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadModelFile, match=says):
        check(h.read_header(DEMO / f"{name}.gguf"))


def test_checks_of_other_contents(tmp_path: Path) -> None:
    header = h.read_header(write(tmp_path, GOOD))
    h.check_text_model(header)
    for change, says in (
        ({"general.architecture": "llama"}, "'llama', not a Gemma 4 language model"),
        ({"general.architecture": 7}, "no architecture"),
        ({"gemma4.block_count": 0}, "block_count is 0"),
        ({"gemma4.block_count": 1025}, "block_count is 1025"),
        ({"gemma4.block_count": "many"}, "block_count is None"),
    ):
        with pytest.raises(BadModelFile, match=says):
            h.check_text_model(replace(header, metadata={**header.metadata, **change}))
    with pytest.raises(BadModelFile, match="no tensors"):
        h.check_text_model(replace(header, tensors=()))
    projector = h.read_header(DEMO / "mmproj.gguf")
    with pytest.raises(BadModelFile, match="'gemma3'"):
        h.check_projector(replace(projector, metadata={**projector.metadata, "clip.vision.projector_type": "gemma3"}), 256)


def test_type_table_is_the_reference_table() -> None:
    assert {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}.items() <= h.TYPE_SIZES.items()


BAD = {
    "empty": (b"", "is empty"),
    "three bytes": (b"GGU", "is not a GGUF file"),
    "a web page": (b"<!DOCTYPE html>" * 9, "is not a GGUF file"),
    "safetensors": (b"\x40\0\0\0\0\0\0\0{}", "is not a GGUF file"),
    "magic only": (b"GGUF", "is cut off"),
    "version 1": (build(version=1), "version 1, not 2 or 3"),
    "version 4": (build(version=4), "version 4, not 2 or 3"),
    "big-endian": (build(version=3 << 24), "big-endian"),
    "many tensors": (build(counts=(2**63, 0)), "claims 9,223,372,036,854,775,808 tensors"),
    "many entries": (build(counts=(0, 2**64 - 1)), "claims 18,446,744,073,709,551,615 metadata entries"),
    "many entries in a large file": (build(counts=(0, 65_537), data=1 << 21), "65,537 metadata entries"),
    "one entry too many": (build((ARCH,), counts=(0, 2)), "a nameless entry"),
    "long key": (build((struct.pack("<Q", 2**40) + b"key",)), "text of 1,099,511,627,776 bytes"),
    "longest key": (build((struct.pack("<Q", 2**64 - 1) + bytes(20),)), "text of"),
    "key past the end": (build((struct.pack("<Q", 999) + bytes(20),)), "bytes more than the file has"),
    "unknown value type": (build((entry("k", 13, b""),)), "unknown type 13"),
    "nested array": (build((entry("k", 9, struct.pack("<IQ", 9, 1)),)), "elements of the unknown type 9"),
    "long array": (build((entry("k", 9, struct.pack("<IQ", 4, 2**62)),)), "claims 4,611,686,018,427,387,904 entries"),
    "array past the end": (build((entry("k", 9, struct.pack("<IQ", 0, 5000)),), data=1000), "claims 5,000 entries"),
    "strings past the end": (build((entry("k", 9, struct.pack("<IQQ", 8, 1200, 99)),), data=9600), "more than the file has"),
    "huge string in a long array": (
        build((entry("k", 9, struct.pack("<IQ", 8, 2000) + struct.pack("<Q", 2**64 - 1) * 2000),)),
        "bytes more than the file has",
    ),
    "duplicate key": (build((ARCH, ARCH)), "the entry 'general.architecture' twice"),
    "duplicate tensor": (build((), (tensor(), tensor(offset=32)), 64), "the tensor 'a' twice"),
    "long name": (build((), (tensor("n" * 64),), 32), "more than 63 bytes"),
    "no dimensions": (build((), (tensor(shape=()) + bytes(8),), 32), "0 dimensions"),
    "five dimensions": (build((), (tensor(shape=(1,) * 5),), 32), "5 dimensions"),
    "zero dimension": (build((), (tensor(shape=(0,)),), 32), "impossible shape"),
    "overflow": (build((), (tensor(shape=(2**32, 2**32)),), 32), "impossible shape"),
    "far place": (build((), (tensor(offset=2**63),), 32), "impossible shape"),
    "removed type": (build((), (tensor(kind=4),), 32), "unknown type 4"),
    "future type": (build((), (tensor(kind=1000),), 32), "unknown type 1000"),
    "part of a block": (build((), (tensor(shape=(40,), kind=8),), 64), "not a multiple of 32"),
    "misaligned": (build((), (tensor(offset=8),), 64), "not aligned to 32"),
    "overlap": (build((), (tensor(), tensor("b")), 64), "is at 0, not at 32"),
    "gap": (build((), (tensor(offset=64),), 128), "is at 64, not at 0"),
    "cut off data": (build((), (tensor(),), 12), "is cut off: 20 bytes of 96 are missing"),
    "odd alignment": (build((entry("general.alignment", 4, struct.pack("<I", 24)),)), "alignment is 24"),
    "no alignment": (build((entry("general.alignment", 4, bytes(4)),)), "alignment is 0"),
    "worded alignment": (build((entry("general.alignment", 8, text("x" * 999)),)), "alignment is x{64},"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    data, says = BAD[name]
    with pytest.raises(BadModelFile, match=says) as caught:
        h.read_header(write(tmp_path, data))
    assert caught.value.message.startswith("model.gguf ") and caught.value.message.endswith(".")
    assert caught.value.hint and len(str(caught.value)) < 400


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for missing in (tmp_path / "none.gguf", write(tmp_path, GOOD) / "inside.gguf"):
        with pytest.raises(NotFound, match="There is no file"):
            h.read_header(missing)
    with pytest.raises(BadModelFile, match="is a folder"):
        h.read_header(tmp_path)
    with pytest.raises(DiskError, match="could not be read"):
        h.read_header("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadModelFile, match="not an ordinary file"):
        h.read_header(tmp_path / "pipe")


def test_version_2_and_alignment_64(tmp_path: Path) -> None:
    assert h.read_header(write(tmp_path, build((ARCH,), version=2))).version == 2
    wide = entry("general.alignment", 4, struct.pack("<I", 64))
    header = h.read_header(write(tmp_path, build((wide,), (tensor(), tensor("b", offset=64)), 128 + 64)))
    assert header.alignment == 64 and header.data_offset % 64 == 0


def test_every_truncation_is_a_bad_model_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    for end in range(len(GOOD)):
        path.write_bytes(GOOD[:end])
        with pytest.raises(BadModelFile):
            h.read_header(path)


@pytest.mark.parametrize("name", NAMES)
def test_demo_file_truncated_at_many_points(name: str, tmp_path: Path) -> None:
    data = (DEMO / f"{name}.gguf").read_bytes()
    header = h.read_header(DEMO / f"{name}.gguf")
    last = header.tensors[-1]
    end = header.data_offset + last.offset + last.nbytes
    points = [*range(0, 400, 7), *range(400, header.data_offset, 4099), header.data_offset, len(data) // 2, end - 1]
    path = write(tmp_path, data[:end])
    h.read_header(path)
    for point in sorted(points, reverse=True):
        os.truncate(path, point)
        with pytest.raises(BadModelFile) as caught:
            h.read_header(path)
        if point >= header.data_offset:
            assert f"{end - point:,} bytes of {end:,} are missing" in str(caught.value)


@settings(max_examples=500, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
def test_damaged_bytes_give_a_header_or_a_typed_error(tmp_path: Path, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(FUZZED)
    for place, change in changes:
        place %= len(data)
        data[place : place + len(change)] = change
    try:
        header = h.read_header(write(tmp_path, bytes(data)))
    except LocalgemmaError as error:
        assert str(error)
    else:
        assert all(header.data_offset + t.offset + t.nbytes <= header.file_size for t in header.tensors)
        h.kind_of(header)


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_noise_after_the_magic_gives_a_typed_error(tmp_path: Path, noise: bytes) -> None:
    for start in (b"GGUF", struct.pack("<4sIQQ", b"GGUF", 3, 1, 1)):
        try:
            h.read_header(write(tmp_path, start + noise))
        except LocalgemmaError as error:
            assert str(error)


def vocabulary(count: int) -> bytes:
    words = b"".join(text(f"token{i}") for i in range(count))
    return entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, count) + words)


FUZZED = build((ARCH, LAYERS, vocabulary(1200), WIDTH), (tensor("a"), tensor("b", offset=32)), 64)


def test_a_real_vocabulary_reads_fast(tmp_path: Path) -> None:
    merges = b"".join(text(f"to ken{i}") for i in range(514_906))
    entries = (
        ARCH,
        vocabulary(262_144),
        entry("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 262_144) + bytes(4 * 262_144)),
        entry("tokenizer.ggml.merges", 9, struct.pack("<IQ", 8, 514_906) + merges),
    )
    path = write(tmp_path, build(entries, (tensor(),), 32))
    took = []
    for _ in range(3):
        start = time.process_time()
        header = h.read_header(path)
        took.append(time.process_time() - start)
    assert header.array_length("tokenizer.ggml.tokens") == 262_144
    assert header.array_length("tokenizer.ggml.merges") == 514_906
    assert min(took) < 0.3, took


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, build((entry("k", 9, struct.pack("<IQ", 0, 3 << 30)),)))
    os.truncate(path, 4 << 30)  # a sparse file
    start = time.process_time()
    with pytest.raises(BadModelFile, match="header would be larger than 48 MiB"):
        h.read_header(path)
    assert time.process_time() - start < 1
