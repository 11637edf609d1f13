"""Linked files, projector pairing, and the split of a file in Ollama's own form."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from ollama_store import DEMO, Store, fused_blob
from test_eval import message

from localgemma import whole
from localgemma.chat.conversation import Conversation
from localgemma.chat.turn import collect
from localgemma.cli.main import cli
from localgemma.engine import Engine
from localgemma.errors import BadModelFile, Cancelled, ChecksumError, DiskError, LocalgemmaError, NotFound, UsageError
from localgemma.files import imports, ledger
from localgemma.files.header import check_projector, read_header
from localgemma.files.imports import forget, imported, link
from localgemma.files.pairing import fits, partner
from localgemma.files.split import copies_folder, link_copies, plan_split
from localgemma.messages import Answer, Timings, Usage
from localgemma.options import ChatOptions, LoadOptions, Sampling


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The demo's files in a folder of somebody's own."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("text", "mmproj", "drafter"):
        shutil.copy(DEMO / f"{name}.gguf", folder)
    return folder


def tiny(path: Path, architecture: str, **numbers: int | str) -> Path:
    """A GGUF with one tensor and these entries (`_` stands for `.`, `__` for `_`)."""
    writer = GGUFWriter(path, architecture)
    for key, value in numbers.items():
        name = key.replace("__", "\0").replace("_", ".").replace("\0", "_")
        writer.add_string(name, value) if isinstance(value, str) else writer.add_uint32(name, value)
    writer.add_tensor("a.weight", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def projector(path: Path, width: int, kind: str = "gemma4v") -> Path:
    return tiny(path, "clip", clip_vision_projector__type=kind, clip_vision_projection__dim=width)


def text(path: Path, width: int, **numbers: int) -> Path:
    return tiny(path, "gemma4", gemma4_block__count=2, gemma4_embedding__length=width, **numbers)


def test_a_linked_file_is_remembered_as_it_was(models: Path) -> None:
    assert imported() == ()
    item = link(models / "text.gguf")
    assert (item.name, item.role, item.width, item.state) == ("text", "text", 256, "present")
    assert item.size == (models / "text.gguf").stat().st_size and item.sha256 is None
    link(models / "mmproj.gguf", name="eyes", sha256="0" * 64)
    link(models / "drafter.gguf")
    assert [(i.name, i.role, i.width) for i in imported()] == [
        ("drafter", "drafter", 256), ("eyes", "projector", 256), ("text", "text", 256),
    ]  # fmt: skip
    assert link(models / "mmproj.gguf").name == "eyes" and imported()[1].sha256 == "0" * 64, "linked anew, it keeps both"
    forget(item)
    assert [i.name for i in imported()] == ["drafter", "eyes"] and (models / "text.gguf").exists()


def test_a_file_that_is_gone_or_replaced_is_noticed(models: Path) -> None:
    path = models / "text.gguf"
    link(path, sha256="1" * 64)
    os.utime(path, ns=(1, 1))
    assert imported()[0].state == "changed"
    assert link(path).state == "present" and imported()[0].sha256 is None, "another file, another hash"
    path.unlink()
    assert imported()[0].state == "gone"
    with pytest.raises(NotFound):
        link(path)


def test_names_do_not_collide(models: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(models, other)
    strange = shutil.copy(models / "text.gguf", tmp_path / "a b\tü:@.gguf")
    assert [link(f / "text.gguf").name for f in (models, other)] == ["text", "text-2"]
    assert link(strange).name == "a-b"
    with pytest.raises(UsageError, match="Another linked file is called 'text'"):
        link(other / "text.gguf", name="text")
    assert link(other / "text.gguf", name="second").name == "second"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: tiny(p, "llama", llama_block__count=2), "architecture 'llama', not a Gemma 4 language model"),
        (lambda p: projector(p, 256, "gemma3"), "type 'gemma3', not of Gemma 4's"),
        (lambda p: text(p, 256, tokenizer_ggml_model="llama"), "in Ollama's own form"),
        (lambda p: Path(p).write_bytes(b"\0" * 100), "is not a GGUF file"),
        (lambda p: Path(p).mkdir(), "is a folder"),
    ],
)
def test_what_cannot_be_used_is_not_linked(tmp_path: Path, make, says: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "x.gguf")
    with pytest.raises(BadModelFile, match=says) as caught:
        link(tmp_path / "x.gguf")
    assert caught.value.hint and imported() == ()


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", '{"files": 1}', '{"files": [1]}', '{"files": [{"path": 1}]}', "[" * 100_000, "\ufeff{}",
        '{"files": [{"name": 1, "role": "text", "path": "/a", "size": 1, "mtime_ns": 1, "width": 1}]}',
        '{"files": [{"name": "a", "role": "king", "path": "/a", "size": 1, "mtime_ns": 1, "width": 1}]}',
        '{"files": [{"name": "a", "role": "text", "path": "a", "size": 1, "mtime_ns": 1, "width": 1}]}',
        '{"files": [{"name": "a", "role": "text", "path": "/a", "size": true, "mtime_ns": 1, "width": 1}]}',
    ],
)  # fmt: skip
def test_a_damaged_registry_is_named(home: Path, content: str) -> None:
    imports.registry().parent.mkdir(parents=True)
    imports.registry().write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"list of linked files, .*imports\.json, is damaged"):
        imported()


def test_many_link_at_once_and_none_is_lost(models: Path, tmp_path: Path) -> None:
    paths = [Path(shutil.copy(models / "mmproj.gguf", tmp_path / f"m{i}.gguf")) for i in range(12)]
    threads = [threading.Thread(target=link, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(item.path for item in imported()) == sorted(paths)
    assert [p.name for p in imports.registry().parent.iterdir() if p.name.startswith(".")] == []


def test_a_registry_that_cannot_be_written_is_a_disk_error(home: Path, models: Path) -> None:
    home.write_text("a file where the folder should be")
    with pytest.raises(DiskError, match="list of linked files could not be written"):
        link(models / "text.gguf")


def test_a_model_in_parts_is_one_entry(tmp_path: Path) -> None:
    parts = [tmp_path / f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    text(parts[0], 256, split_no=0, split_count=3)
    for n in (1, 2):
        tiny(parts[n], "", split_no=n, split_count=3)
    item = link(parts[1])
    assert item.path == parts[0] and item.size == sum(p.stat().st_size for p in parts) and item.state == "present"
    os.utime(parts[2], ns=(5, 2**62))
    assert imported()[0].state == "changed"
    tiny(parts[2], "", split_no=1, split_count=3)
    with pytest.raises(BadModelFile, match="is not part 3 of"):
        link(parts[0])
    parts[2].unlink()
    assert imported()[0].state == "gone"
    with pytest.raises(NotFound, match="00003-of-00003"):
        link(parts[0])
    alone = parts[0].rename(tmp_path / "big.gguf")
    with pytest.raises(BadModelFile, match="part of a set of 3"):
        link(alone)


def test_only_a_projector_that_fits_is_paired(tmp_path: Path) -> None:
    model = read_header(text(tmp_path / "gemma-4-31b-it-Q4_K_M.gguf", 5376))
    wrong = [
        projector(tmp_path / "mmproj-a-wide.gguf", 2048), projector(tmp_path / "mmproj-b-old.gguf", 5376, "gemma3"),
        text(tmp_path / "mmproj-c-text.gguf", 5376),
    ]  # fmt: skip
    (tmp_path / "mmproj-d.gguf").write_bytes(b"GGUF")
    assert partner(model, "projector") is None and not any(fits(path, model, "projector") for path in wrong)
    for path in wrong:
        with pytest.raises(BadModelFile):
            check_projector(read_header(path), 5376)
    right = projector(tmp_path / "mmproj-z.gguf", 5376)
    found = partner(model, "projector")
    assert found and found.path == right and "beside gemma-4-31b-it-Q4_K_M.gguf" in found.why


@pytest.mark.parametrize(
    ("model", "candidates", "best"),
    [
        ("gemma-4-31b-it-Q4_0", ["mmproj-gemma-4-31b-it-qat", "mmproj-other"], 1),
        ("gemma-4-31b-it-qat-Q4_0", ["mmproj-gemma-4-31b-it", "mmproj-x-QAT"], 1),
        ("unsloth_gemma-4-31B-it-GGUF_x", ["ggml-org_gemma_mmproj-F16", "unsloth_gemma-4-31B-it-GGUF_mmproj-F16"], 1),
        ("a", ["mmproj-F32", "mmproj-F16", "mmproj-BF16"], 2),
        ("google_gemma-4-31B-it-Q5_K_M", ["mmproj-google_gemma-4-31B-it-f16", "mmproj-google_gemma-4-31B-it-bf16"], 1),
        ("model", ["mmproj"], 0),
    ],
)
def test_the_nearest_of_several_is_taken(tmp_path: Path, model: str, candidates: list[str], best: int) -> None:
    header = read_header(text(tmp_path / f"{model}.gguf", 64))
    paths = [projector(tmp_path / f"{name}.gguf", 64) for name in candidates]
    found = partner(header, "projector")
    assert found and found.path == paths[best]


def test_a_linked_projector_serves_a_model_elsewhere(tmp_path: Path, models: Path) -> None:
    (tmp_path / "alone").mkdir()
    header = read_header(shutil.copy(models / "text.gguf", tmp_path / "alone"))
    assert partner(header, "projector") is None and partner(header, "drafter") is None
    link(models / "mmproj.gguf")
    link(models / "drafter.gguf")
    (models / "drafter.gguf").unlink()
    found = partner(header, "projector")
    assert found and found.path == models / "mmproj.gguf" and found.why == "is linked"
    assert partner(header, "drafter") is None, "what is gone is not offered"


def shape_of_31b(path: Path) -> Path:
    """The 31B's layers without their weights: a file with a hole of 17 GB, and no vocabulary."""
    writer = GGUFWriter(path, "gemma4")
    writer.add_block_count(60)
    writer.add_embedding_length(5376)
    for layer in range(60):
        for name, shape in (("ffn_gate", (21504, 5376)), ("ffn_up", (21504, 5376)), ("ffn_down", (5376, 21504))):
            size = 21504 * 5376 // 256 * 144
            columns = (shape[0], shape[1] // 256 * 144)
            writer.add_tensor_info(f"blk.{layer}.{name}.weight", columns, np.dtype(np.uint8), size, GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + 32 + 180 * (21504 * 5376 // 256 * 144))
    return path


def test_the_31b_is_recognised_by_its_shape(tmp_path: Path) -> None:
    path = shape_of_31b(tmp_path / "some-name.gguf")
    projector(tmp_path / "mmproj-small.gguf", 2560)
    right = projector(tmp_path / "mmproj-z-right.gguf", 5376)
    found = run("import", tmp_path, "--dry-run")["found"]
    assert [(f["name"], f["is_31b"], f["projector"]) for f in found if f["role"] == "text"] == [
        ("some-name", True, str(right))
    ]
    linked = run("import", path)["linked"]
    assert [(i["role"], i["width"], i["path"]) for i in linked] == [
        ("text", 5376, str(path)), ("projector", 5376, str(right)),
    ]  # fmt: skip
    assert linked[0]["size"] == path.stat().st_size > 10**10 > 512 * path.stat().st_blocks


@pytest.mark.live
@pytest.mark.slow
def test_a_31b_shaped_file_runs_where_it_lies(tmp_path: Path, shared: Path, full: bool) -> None:
    """Six layers with the real widths and vocabulary (2.9 GB): linked, opened by path and by name, and it says something."""
    if not full:
        pytest.skip("makes a file of 2.9 GB: give --full")
    import localgemma

    vocabulary, model = tmp_path / "vocab.gguf", tmp_path / "models" / "gemma-4-31b-shape-Q4_K_M.gguf"
    with lzma.open(shared / "gpu" / "gemma-4-vocab.gguf.xz") as source, vocabulary.open("wb") as target:
        shutil.copyfileobj(source, target)
    model.parent.mkdir()
    make = [sys.executable, str(shared / "gpu" / "make_shape_gguf.py"), str(vocabulary)]
    subprocess.run([*make, str(model), "Q4_K_M", "text", "6"], check=True, capture_output=True)
    subprocess.run([*make, str(model.parent / "mmproj-BF16.gguf"), "BF16", "vision", "1"], check=True, capture_output=True)
    shutil.copy(DEMO / "mmproj.gguf", model.parent / "mmproj-a-wrong.gguf")
    linked = run("import", model)["linked"]
    assert [(item["role"], item["width"]) for item in linked] == [("text", 5376), ("projector", 5376)]
    for name in (model, linked[0]["name"]):
        with localgemma.open(name, options=LoadOptions(ctx=512, gpu_layers=0, image_tokens=70)) as opened:
            assert opened.plan.text == model and opened.plan.projector
            answer = opened.chat().ask("Hello?", temperature=0, max_tokens=8, seed=1)
            assert answer.usage.answer > 0 and answer.finish_reason in ("length", "stop")


def contents(path: Path) -> dict[str, object]:
    reader = GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def test_a_split_copy_is_the_original_again(tmp_path: Path) -> None:
    blob = fused_blob(tmp_path / "blob")
    plan = plan_split(blob, tmp_path / "out", "demo")
    told: list[int] = []
    hashes = plan.execute(lambda done, total: told.append(done))
    assert plan.projector and list(hashes) == [plan.text.path, plan.projector.path]
    assert plan.is_done and plan.size == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    assert told[-1] == blob.stat().st_size and told == sorted(told)
    new, old = contents(plan.text.path), contents(DEMO / "text.gguf")
    left_out = {"general.type", "general.size_label", *(f"general.sampling.{k}" for k in ("top_k", "top_p", "temp"))}
    assert old.keys() - new.keys() == left_out, "these the fused file never had"
    assert {key: new[key] for key in old.keys() & new.keys()} == {key: old[key] for key in old.keys() & new.keys()}
    assert new.keys() - old.keys() == {"tokenizer.ggml.pre", "general.alignment"}
    new, old = contents(plan.projector.path), contents(DEMO / "mmproj.gguf")
    assert {key: old[key] for key in old if key.startswith("clip.")} == {k: new[k] for k in new if k.startswith("clip.")}
    assert new["clip.use_gelu"] is True and new["general.architecture"] == "clip"
    for path, source in ((plan.text.path, "text"), (plan.projector.path, "mmproj")):
        mine, theirs = ({t.name: t for t in GGUFReader(p).tensors} for p in (path, DEMO / f"{source}.gguf"))
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert tensor.tensor_type == mine[name].tensor_type and tensor.shape.tolist() == mine[name].shape.tolist()
            if name == "v.patch_embd.weight":  # the fused file has it in F16
                assert abs(tensor.data - mine[name].data).max() <= 2**-11 * abs(tensor.data).max()
            else:
                assert (tensor.data == mine[name].data).all()


def test_a_blob_that_is_not_what_its_name_says_is_not_copied(tmp_path: Path) -> None:
    store = Store(tmp_path / "ollama")
    blob = store.blob(fused_blob(tmp_path / "x"))
    with blob.open("r+b") as stream:
        stream.seek(-5000, os.SEEK_END)
        stream.write(b"\xaa")
    with pytest.raises(ChecksumError, match="is damaged"):
        plan_split(blob, tmp_path / "out", "demo").execute()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_split_that_does_not_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_split(fused_blob(tmp_path / "blob"), tmp_path / "out", "demo")
    with pytest.raises(Cancelled):
        plan.execute(lambda done, total: done < total // 2)
    assert list((tmp_path / "out").iterdir()) == []
    os.truncate(tmp_path / "blob", plan.source.file_size - 100_000)
    with pytest.raises(BadModelFile, match="became shorter"):
        plan.execute()
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(whole.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(DiskError, match=r"Free 28\.\d MiB there"):
        plan.execute()
    assert list((tmp_path / "out").iterdir()) == [] and not plan.is_done


def test_what_cannot_be_split_says_why(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="nothing needs to be split"):
        plan_split(DEMO / "text.gguf", tmp_path, "x")
    with pytest.raises(BadModelFile, match="has no vocabulary"):
        plan_split(text(tmp_path / "a.gguf", 64, tokenizer_ggml_model="llama"), tmp_path, "x")


def run(*words: object, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["models", *map(str, words), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else {"said": result.output}


def test_import_links_a_file_with_what_lies_beside_it(models: Path) -> None:
    assert run("import", models / "text.gguf", "--dry-run")["would_link"] == [
        str(models / f"{name}.gguf") for name in ("text", "mmproj", "drafter")
    ]
    assert imported() == ()
    linked = run("import", models / "text.gguf", "--name", "mine")["linked"]
    assert [(i["name"], i["role"]) for i in linked] == [("mine", "text"), ("mmproj", "projector"), ("drafter", "drafter")]
    assert "not clear" in str(run("import", code=2)["said"])
    assert "is not a GGUF" in str(run("import", Path(__file__), code=2)["said"])
    assert "There is no file" in str(run("import", models / "none.gguf", code=3)["said"])


def test_import_understands_ollamas_folder(tmp_path: Path, models: Path) -> None:
    store = Store(tmp_path / "ollama")
    own = store.blob(fused_blob(tmp_path / "x"))
    plain, eyes = store.blob(models / "text.gguf"), store.blob(models / "mmproj.gguf")
    store.manifest("registry.ollama.ai/library/gemma4/31b", model=own)
    store.manifest("hf.co/unsloth/gemma-4-31B-it-GGUF/Q4_K_M", model=plain, projector=eyes)
    linked = run("import", plain)["linked"]
    assert [(i["name"], i["role"], i["path"]) for i in linked] == [
        ("hf.co-unsloth-gemma-4-31B-it-GGUF-Q4_K_M", "text", str(plain)), (eyes.name, "projector", str(eyes)),
    ]  # fmt: skip
    assert linked[0]["sha256"] == plain.name.removeprefix("sha256-")
    said = str(run("import", own, code=2)["said"])
    assert "A split copy of" in said and "13.3 MiB" in said and "--split" in said
    made = run("import", own, "--split")
    assert [i["name"] for i in made["linked"]] == ["gemma4-31b", "mmproj-gemma4-31b"]
    for item in imported():
        assert item.state == "present"
        if item.path.is_relative_to(imports.models_folder()):
            record = ledger.recall(item.path)
            assert record and record.fetched and record.sha256 == item.sha256
    assert own.exists() and run("import", own, "--split")["linked"] == made["linked"], "done before, it is only linked"


@pytest.mark.live
def test_the_split_files_answer_as_the_originals(tmp_path: Path, shared: Path, full: bool) -> None:
    """Greedy answers of the demo model and of its split copies, to held-out questions with and without pictures."""
    import localgemma

    blob = fused_blob(tmp_path / "blob")
    with pytest.raises(LocalgemmaError, match="in Ollama's own form"):
        localgemma.open(blob)
    plan = plan_split(blob, copies_folder(blob, "demo"), "demo")
    copy = link_copies(plan, plan.execute())[0]
    lines = (shared / "demo-model" / "eval.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines[:: 6 if full else 52]]
    answers: list[list[Answer]] = []
    small = LoadOptions(ctx=2048, threads=1, image_tokens=70)  # one thread: others' work beside it does not stall it
    for model in (DEMO / "text.gguf", copy.path):
        with localgemma.open(model, options=small) as opened:
            assert opened.plan.projector is not None
            answers.append([reply(opened.engine, item) for item in items])
    assert answers[0] == answers[1]
    assert len({answer.content for answer in answers[0]}) > len(items) // 2


def reply(engine: Engine, item: dict[str, Any]) -> Answer:
    """The greedy answer to a held-out question, without what it cost."""
    history = [message(m) for m in item["messages"]]
    system = history.pop(0).text if history[0].role == "system" else None
    options = ChatOptions(thinking=item["enable_thinking"])
    chat = Conversation(
        engine, system, options, Sampling(temperature=0, max_tokens=100), tools=item["tools"] or (), history=history
    )
    answer = collect(chat.reply())
    return replace(answer, usage=Usage(), timings=Timings())
