"""The same text and chunks as llama-perplexity: its figures, stored, beside ours; and the whole command from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from reference.make_perplexity import text

from localgemma.cli.main import cli
from localgemma.compare import lgref
from localgemma.llamacpp import devices
from localgemma.make import quantize
from localgemma.make.quantize import Wish

pytestmark = pytest.mark.live
ROOT = Path(__file__).resolve().parent
DEMO = ROOT.parent / "localgemma" / "assets" / "demo" / "text.gguf"


@pytest.fixture(scope="module")
def coarser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("compare") / "q2.gguf"
    quantize.run_plan(quantize.make_plan(DEMO, Wish("Q2_K", requantize=True)), target)
    return target


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["compare", *arguments])
    return done.exit_code, done.output


def test_raw_text_gives_the_figures_of_llama_perplexity(coarser: Path, tmp_path: Path) -> None:
    kind = "amx" if "AMX_INT8 = 1" in devices.system_info() else "other"
    told = json.loads((ROOT / "data" / "perplexity.json").read_text())[kind]
    data, kept = tmp_path / "text.txt", tmp_path / "x.lgref"
    data.write_text(text(), encoding="utf-8")
    raw = ["--raw", "--data", str(data), "--ubatch", "512", "--json", "-q"]
    code, output = run(str(coarser), "--reference", str(DEMO), "--save-reference", str(kept), *raw)
    assert code == 0, output
    found = json.loads(output[output.index("{") :])["results"][0]["overall"]
    assert found["perplexity"] == pytest.approx(told["ppl"], rel=1e-3)  # other processors round otherwise
    assert found["kl"]["value"] == pytest.approx(told["kl"], rel=0.01)
    assert 100 * found["dp_rms"] == pytest.approx(told["dp_rms"], rel=0.01)
    assert 100 * found["same_top"]["value"] == pytest.approx(told["same"], abs=0.5)
    assert kept.stat().st_size / found["positions"] < 1024
    assert sum(len(sample.targets) for sample in lgref.read(kept).samples) == found["positions"]

    code, output = run(str(coarser), "--reference", str(kept), *raw[:3], "--json", "-q")
    assert code == 0, output
    again = json.loads(output[output.index("{") :])["results"][0]["overall"]
    difference = abs(again["kl"]["value"] - found["kl"]["value"])
    assert difference < max(0.01 * found["kl"]["value"], found["kl_error"])
    assert again["kl"]["low"] <= found["kl"]["value"] <= again["kl"]["high"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "No file to compare is named"),
        (["demo.gguf", "--markdown", "--csv"], "Choose one of them"),
        ([str(DEMO)], "nothing to compare it with"),
        (["Q4_K_M", "--reference", str(DEMO)], "--make"),
        (["Q4_K_M", "--reference", "nothing.lgref"], "--make"),
        ([str(DEMO), "--reference", "nothing.lgref"], "There is no file nothing.lgref"),
        ([str(DEMO), "--reference", str(DEMO)], "The reference is the only file named"),
        ([str(DEMO), "--reference", str(DEMO), "--kv", "q8_0", "--set", "small", "--data", "x"], "Give one of them"),
        ([str(DEMO), "--reference", str(DEMO), "--kv", "q8_0", "--data", "missing.txt"], "missing.txt"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_sentence(arguments: list[str], said: str) -> None:
    from localgemma.errors import LocalgemmaError

    done = CliRunner().invoke(cli, ["compare", *arguments], standalone_mode=False)
    error = done.exception
    assert said in (str(error) if isinstance(error, LocalgemmaError) else done.output)
