"""The catalogue: its own file, names, choices, a user's file over it, and what a broken one says."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import string
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin_hub import Hub

from localgemma.errors import LocalgemmaError, NotFound, UsageError
from localgemma.files import catalog
from localgemma.files.catalog import Name
from localgemma.files.catalog_file import is_safe_path, merged
from localgemma.files.hub import list_files

ROOT = Path(__file__).resolve().parent.parent
KNOWN = catalog.load(Path("none"))
BIG = KNOWN.entries["gemma-4-31b"]


def own(tmp_path: Path, text: str) -> Path:
    """A user's models.toml."""
    path = tmp_path / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_publisher_is_there_with_projector_and_drafter() -> None:
    assert {variant.publisher for variant in BIG.variants} == {
        "google", "ggml-org", "unsloth", "unsloth-qat", "bartowski", "lmstudio",
    }  # fmt: skip
    for variant in BIG.variants:
        assert variant.projectors and variant.drafters, variant.name
        assert [file.role for file in variant.files[-2:]] == ["projector", "drafter"]


def test_quantisation_aware_files_go_together() -> None:
    aware = {variant.publisher for variant in BIG.variants if variant.qat}
    assert aware == {"google", "unsloth-qat"}
    for variant in BIG.variants:
        for file in (*variant.projectors, *variant.drafters):
            assert (file.publisher in aware) == variant.qat, (variant.name, file)


def test_sizes_agree_with_the_tensors() -> None:
    """Tensor bytes by arithmetic from the released shapes, plus header, tokenizer and template: at most 16 MB."""
    tensors = {
        "Q4_0@google": 17_635_168_128, "Q4_0@ggml-org": 17_976_479_616, "Q8_0@ggml-org": 32_619_843_456,
        "Q8_0@unsloth": 32_619_843_456, "Q6_K@lmstudio": 25_185_652_608, "UD-Q4_K_XL@unsloth-qat": 17_271_836_544,
    }  # fmt: skip
    for name, expected in tensors.items():
        variant = KNOWN.find(f"gemma-4-31b:{name}").variants[0]
        assert variant.text[0].bytes and 15_830_000 < variant.text[0].bytes - expected < 15_835_000, name


def test_bits_per_weight() -> None:
    assert KNOWN.find("gemma-4-31b:q4_0@google").variants[0].bits_per_weight == pytest.approx(4.600, abs=5e-4)
    assert KNOWN.find("gemma-4-31b:q6_k@lmstudio").variants[0].bits_per_weight == pytest.approx(6.5677, abs=5e-5)
    assert KNOWN.find("gemma-4-31b:q4_1@unsloth").variants[0].bits_per_weight is None


def test_quality_has_its_source() -> None:
    quality = KNOWN.find("gemma-4-31b:Q4_K_M@unsloth").variants[0].quality
    assert [(figure.value, figure.measure.name) for figure in quality] == [(0.61, "localbench")]
    assert "April 2026" in quality[0].measure.title
    assert BIG.kv["q8_0"][0].value == 0.108


def test_the_catalogue_holds_the_collected_facts(shared: Path) -> None:
    facts = json.loads((shared / "catalog.json").read_text())
    current = {(f["repo"], f["path"]): f for f in facts if f["status"] == "current" and f["sha256"] and f["bytes"]}
    checked = 0
    for file in KNOWN.files():
        if fact := current.get((file.repository, file.path)):
            checked += 1
            assert (file.bytes, file.sha256, file.revision) == (fact["bytes"], fact["sha256"], fact["revision"])
    assert checked >= 20


def test_parts_of_one_quantisation_are_one_variant() -> None:
    variant = KNOWN.find("gemma-4-31b:bf16@unsloth").variants[0]
    assert [re.sub(r".*-(\d{5}-of-\d{5}).*", r"\1", file.path) for file in variant.text] == [
        "00001-of-00002",
        "00002-of-00002",
    ]


@pytest.mark.parametrize(
    ("text", "chosen", "why"),
    [
        ("gemma-4-31b", "Q4_0@google", "Google trained"),
        ("GEMMA-4-31B-IT", "Q4_0@google", "Google trained"),
        (" gemma-4-31b : q8_0 @ unsloth ", "Q8_0@unsloth", "the only one"),
        ("gemma-4-31b:Q4_K_M", "Q4_K_M@unsloth", "0.61 by localbench"),
        ("gemma-4-31b@unsloth", "Q4_K_M@unsloth", "usual middle"),
        ("gemma-4-31b@google", "Q4_0@google", "Google trained"),
        ("gemma-4-31b@lmstudio-community", "Q4_K_M@lmstudio", "usual middle"),
        ("gemma-4-31b:q5_k_xl", "UD-Q5_K_XL@unsloth", "the only one"),
        ("gemma-4-31b:q6_k", "Q6_K@lmstudio", "known exactly"),
        ("gemma-4-31b:iq2_xs", "IQ2_XS@bartowski", "the only one"),
        ("unsloth/gemma-4-31B-it-GGUF:Q6_K", "Q6_K@unsloth", "the only one"),
        ("demo", "Q4_K_M@localgemma", "ships with"),
    ],
)
def test_what_a_name_means(text: str, chosen: str, why: str) -> None:
    variant, reason = KNOWN.find(text).choose()
    assert (f"{variant.quant}@{variant.publisher}", why in reason) == (chosen, True), reason


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("gemma-4-32b", NotFound, "Did you mean gemma-4-31b"),
        ("gemma-4-31b:q4km", NotFound, "Did you mean Q4_K_M"),
        ("gemma-4-31b@unslot", NotFound, "Did you mean unsloth"),
        ("gemma-4-31b:q4_k_m@google", NotFound, "has no quantisation 'q4_k_m'"),
        ("llama", NotFound, "There are: demo, gemma-4-31b"),
        ("a:b:c", UsageError, "Write it like"),
        ("gemma-4-31b:", UsageError, "Write it like"),
        ("", UsageError, "Write it like"),
    ],
)
def test_what_is_no_name(text: str, kind: type[LocalgemmaError], says: str) -> None:
    with pytest.raises(kind, match=re.escape(says)):
        KNOWN.find(text)


PIECE = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=20)


@given(PIECE, st.none() | PIECE, st.none() | PIECE)
def test_a_name_reads_back(model: str, quant: str | None, publisher: str | None) -> None:
    text = model + (f":{quant}" if quant else "") + (f"@{publisher}" if publisher else "")
    assert Name.parse(text) == Name(model, quant, publisher)


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_a_typed_error(text: str) -> None:
    try:
        assert KNOWN.find(text).variants
    except LocalgemmaError as error:
        assert error.hint


@given(st.sampled_from([variant.name for variant in KNOWN.variants()]), st.randoms())
def test_every_name_means_one_variant_in_any_case(name: str, random: object) -> None:
    mixed = "".join(c.upper() if random.random() < 0.5 else c.lower() for c in name)  # type: ignore[attr-defined]
    assert [variant.name for variant in KNOWN.find(mixed).variants] == [name]


def test_a_users_file_adds_and_overrides(tmp_path: Path) -> None:
    path = own(tmp_path, """
        [models.gemma-4-31b]
        default = "Q4_K_M@me"
        default_reason = "made here"
        [models.gemma-4-31b.publishers.me]
        repository = "me/my-gemma"
        projector_from = "ggml-org"
        text = [{ quant = "Q4_K_M", path = "mine.gguf", bytes = 5 }]
        [models.gemma-4-31b.publishers.google]
        text = [{ path = "gemma-4-31B_q4_0-it.gguf", bytes = 7 }]
        [models.other]
        title = "Other"
        [models.other.publishers.here]
        folder = "files"
        text = [{ quant = "Q8_0", path = "a/b.gguf" }]
    """)  # fmt: skip
    known = catalog.load(path)
    variant, why = known.find("gemma-4-31b").choose()
    assert (variant.name, why) == ("gemma-4-31b:Q4_K_M@me", "made here")
    assert variant.projectors[0].publisher == "ggml-org" and not variant.drafters
    google = known.find("gemma-4-31b@google").variants[0].text[0]
    assert (google.bytes, google.quant, google.sha256) == (
        7,
        "Q4_0",
        KNOWN.find("gemma-4-31b@google").variants[0].text[0].sha256,
    )
    assert known.find("other").variants[0].folder == tmp_path / "files"
    assert len(known.entries["demo"].variants) == 1


MODEL = '[models.m]\ntitle = "M"\n[models.m.publishers.p]\n'


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("[models.m\n", 1, "TOML"),
        ('a = 1\nb = "unclosed\n', 2, "TOML"),
        ("[other]\n", 1, "other"),
        ('[models.m]\n\ntitel = "M"\n', 3, "models.m.titel"),
        ("[models]\nm = 3\n", 2, "models.m"),
        ('\n[models.m]\ntitle = "M"\n', 2, "models.m"),
        (MODEL + 'text = []\nrepository = "a/b"\n', 1, "models.m"),
        (MODEL + "text = [\n  { quant = 4 },\n]\n", 5, "models.m.publishers.p.text[1].quant"),
        (MODEL + 'text = [\n{ quant = "Q", path = "a.gguf" },\n{ quant = "Q", path = "../a.gguf" },\n]\n', 6, "[2].path"),
        (MODEL + 'repository = "a/b"\ntext = [\n  { quant = "Q8_0", path = "a.gguf", sha256 = "ABC" },\n]\n', 6, "sha256"),
        (MODEL + 'repository = "a/b"\ntext = [\n  { quant = "Q8_0", path = "a.gguf", bytes = -1 },\n]\n', 6, "bytes"),
        (MODEL + 'repository = "a/b"\ntext = [\n  { quant = "Q8_0" },\n]\n', 6, "'path'"),
        (MODEL + 'repository = "ab"\n', 4, "repository"),
        (MODEL + 'text = [{ quant = "Q8_0", path = "a.gguf" }]\n', 3, "'repository' or a 'folder'"),
        (MODEL + 'repository = "a/b"\ntext = 3\n', 5, "text"),
        (MODEL + 'repository = "a/b"\ntext = [3]\n', 5, "text[1]"),
        (MODEL + 'repository = "a/b"\ndrafter_from = "x"\ntext = [{ quant = "Q8_0", path = "a.gguf" }]\n', 5, "drafter_from"),
        (MODEL + 'repository = "a/b"\ntext = [\n{ quant = "Q8_0", path = "a.gguf", quality = { x = 1 } },\n]\n', 6, ".x"),
        ('[models.m]\ntitle = "M"\ndefault = "Q8_0@x"\n[models.m.publishers.p]\nrepository = "a/b"\n'
         'text = [{ quant = "Q8_0", path = "a.gguf" }]\n', 3, "models.m.default"),
        ('[models.m]\ntitle = "M"\naliases = ["demo"]\n[models.m.publishers.p]\nrepository = "a/b"\n'
         'text = [{ quant = "Q8_0", path = "a.gguf" }]\n', 3, "'demo'"),
        ('[models."../m"]\ntitle = "M"\n', 1, "letters"),
        ('[measures.m]\ntitle = "M"\nmetric = "x"\n', 1, "better"),
    ],
)  # fmt: skip
def test_a_broken_file_says_file_line_and_field(tmp_path: Path, text: str, line: int, field: str) -> None:
    path = own(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        catalog.load(path)
    message = str(caught.value)
    assert str(path) in message and f"line {line}" in message and field in message, message
    assert caught.value.hint


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        catalog.load(path)


@pytest.mark.parametrize(
    ("path", "safe"),
    [
        ("a.gguf", True), ("BF16/a-00001-of-00002.gguf", True), ("a b.gguf", True), ("../a.gguf", False), ("/a.gguf", False),
        ("a/../b.gguf", False), ("a//b.gguf", False), ("./a.gguf", False), ("a\\b.gguf", False), ("C:a.gguf", False),
        ("a.bin", False), ("a\n.gguf", False), ("", False), (3, False), (".. /a.gguf", False),
    ],
)  # fmt: skip
def test_paths_that_could_leave_their_folder(path: object, safe: bool) -> None:
    assert is_safe_path(path) == safe


def test_merging_leaves_the_base_alone() -> None:
    base = {"a": {"b": 1}, "text": [{"path": "x", "bytes": 1}]}
    result = merged(base, {"a": {"c": 2}, "text": [{"path": "x", "about": 3}, {"path": "y"}]})
    assert result == {"a": {"b": 1, "c": 2}, "text": [{"path": "x", "bytes": 1, "about": 3}, {"path": "y"}]}
    assert base == {"a": {"b": 1}, "text": [{"path": "x", "bytes": 1}]}


def _refresher() -> Any:
    spec = importlib.util.spec_from_file_location("refresh_catalog", ROOT / "scripts" / "refresh_catalog.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_refreshing_without_news_changes_nothing_but_what_was_unknown(hub: Hub, tmp_path: Path) -> None:
    """Lines of files that the hub confirms stay byte for byte."""
    path = tmp_path / "models.toml"
    shutil.copy(ROOT / "models.toml", path)
    raw = tomllib.loads(path.read_text())["models"]["gemma-4-31b"]["publishers"]["lmstudio"]
    for role in ("text", "projector"):
        for file in raw[role]:
            hub.add(raw["repository"], file["path"], file["path"].encode())
    assert _refresher().main(["--file", str(path), "--only", "lmstudio"]) == 0
    before, after = (ROOT / "models.toml").read_text().splitlines(), path.read_text().splitlines()
    changed = [line for line in after if line not in before]
    assert len(changed) == 1 + 4 + 1 and all("sha256" in line or "revision" in line for line in changed)
    known = catalog.CatalogFile(path).data["models"]["gemma-4-31b"]["publishers"]["lmstudio"]
    assert known["replaced"][0]["path"] == "gemma-4-31B-it-Q6_K.gguf"  # the content here is another one
    assert _refresher().main(["--file", str(path), "--only", "lmstudio", "--check"]) == 0


def test_refreshing_finds_what_came_and_went(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own(
        tmp_path,
        '# kept\n[models.m]\ntitle = "M"\n\n[models.m.publishers.p]\nrepository = "a/b"  # kept too\ntext = [\n'
        '  { quant = "Q8_0", path = "m-Q8_0.gguf", about = 10, quality = { x = 0.5 } },\n'
        '  { quant = "Q2_K", path = "m-Q2_K.gguf" },\n]\n\n[measures.x]\ntitle = "X"\nmetric = "x"\nbetter = "lower"\n',
    )
    for name in ("m-Q8_0.gguf", "m-UD-Q4_K_XL.gguf", "mmproj-F16.gguf", "MTP/mtp-m-Q8_0.gguf", "imatrix.gguf", "README.md"):
        hub.add("a/b", name, name.encode() * 3)
    script = _refresher()
    assert script.main(["--file", str(path), "--check"]) == 1
    assert "about = 10" in path.read_text()
    assert script.main(["--file", str(path)]) == 0
    said = capsys.readouterr().out
    for sentence in (
        "m-Q2_K.gguf is gone",
        "m-UD-Q4_K_XL.gguf is new",
        "mmproj-F16.gguf is new",
        "MTP/mtp-m-Q8_0.gguf is new",
    ):
        assert f"p: {sentence}" in said
    text = path.read_text()
    assert text.startswith("# kept\n") and "# kept too" in text and "imatrix" not in text
    variants = catalog.load(path).entries["m"].variants
    assert [variant.quant for variant in variants] == ["Q8_0", "UD-Q4_K_XL"]
    assert variants[0].quality[0].value == 0.5 and variants[0].text[0].sha256
    assert variants[0].projectors[0].quant == "F16" and variants[0].drafters[0].quant == "Q8_0"
    assert script.main(["--file", str(path), "--check"]) == 0


def test_names_tell_role_and_quantisation() -> None:
    kind_of, nameless = _refresher().kind_of, 0
    for file in KNOWN.files():
        if file.repository and kind_of(file.path) != (file.role, file.quant.upper()):
            assert kind_of(file.path) == ("", ""), file.path  # its header is asked
            nameless += 1
    assert nameless == 3


def test_a_header_tells_where_the_name_does_not(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path / "home"))
    hub.add("a/b", "m-Q8_0.gguf", b"x")
    hub.add("a/b", "some-mmproj.gguf", catalog.PACKAGE / "assets" / "demo" / "mmproj.gguf")
    hub.add("a/b", "nothing.gguf", b"x")
    renewed, notes = _refresher().renew({"repository": "a/b"}, list_files("a/b"), "2026-01-01")
    assert [(file["path"], file["quant"]) for file in renewed["projector"]] == [("some-mmproj.gguf", "F16")]
    assert [file["path"] for file in renewed["text"]] == ["m-Q8_0.gguf"] and len(notes) == 2
