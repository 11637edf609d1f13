"""The engine on the demo model: what it answers, what its logits are, and how it stops."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from localgemma.engine import CancelToken, Control, Finished, Media, Piece, Prompt, Request, SpanLimit, Text
from localgemma.errors import BackendError, BadModelFile, ContextOverflow, PictureTooLarge
from localgemma.gemma4 import tokens
from localgemma.llamacpp import library
from localgemma.llamacpp import model as model_module
from localgemma.llamacpp.engine import LlamaEngine, open_engine
from localgemma.messages import Pixels
from localgemma.options import LoadOptions, Sampling

pytestmark = pytest.mark.live
DEMO = Path(__file__).parents[1] / "localgemma" / "assets" / "demo"
SHARED = Path(__file__).parents[2] / "shared" / "demo-model"
NAMES = re.compile("|".join(map(re.escape, sorted(tokens.EVERY_CONTROL, key=len, reverse=True))))
GREEDY = Sampling(temperature=0)
NEVER_STOP = {1: -99.0, 50: -99.0, 106: -99.0}
SPAN = SpanLimit(tokens.CHANNEL, tokens.CHANNEL_END, 200, (Text("\n"), Control(tokens.CHANNEL_END)))


def pixels(image: Image.Image) -> Pixels:
    rgb = image.convert("RGB").tobytes()
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode() + rgb).hexdigest()
    return Pixels(rgb, image.width, image.height, image.width * image.height // 48**2, digest)


def prompt_of(text: str, pictures: list[Pixels] | None = None) -> Prompt:
    """A prompt from the template's text, `<__media__>` standing for each picture."""
    queue = list(pictures or [])
    parts: list[Control | Text | Media] = []
    for half in re.split("(<__media__>)", text):
        if half == "<__media__>":
            parts.append(Media("<|image|>", (Control("<|image>"), queue.pop(0), Control("<image|>"))))
            continue
        start = 0
        for found in NAMES.finditer(half):
            parts += [Text(half[start : found.start()]), Control(found[0])]
            start = found.end()
        parts.append(Text(half[start:]))
    return Prompt(tuple(p for p in parts if not isinstance(p, Text) or p.text))


def question(text: str, thinking: bool = False) -> Prompt:
    if thinking:
        return prompt_of(f"<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\n{text}<turn|>\n<|turn>model\n")
    return prompt_of(f"<bos><|turn>user\n{text}<turn|>\n<|turn>model\n<|channel>thought\n<channel|>")


def run(engine: LlamaEngine, request: Request, cancel: CancelToken | None = None) -> tuple[str, list[Piece], Finished]:
    outputs = list(engine.generate(request, cancel))
    pieces = [o for o in outputs if isinstance(o, Piece)]
    assert isinstance(outputs[-1], Finished)
    return b"".join(p.data for p in pieces if p.marker is None).decode("utf-8", "replace"), pieces, outputs[-1]


@pytest.fixture(scope="module")
def demo() -> Iterator[LlamaEngine]:
    engine = open_engine(DEMO / "text.gguf", DEMO / "mmproj.gguf", LoadOptions())
    yield engine
    engine.close()


def test_it_answers_and_counts(demo: LlamaEngine) -> None:
    text, _, done = run(demo, Request(question("What is the capital of France?"), GREEDY))
    assert text == "The capital of France is Paris."
    assert done.reason == "stop" and done.usage.answer == 7 and done.usage.prompt == 20


def test_the_same_prompt_again_is_in_the_cache_and_gives_the_same(demo: LlamaEngine) -> None:
    first = run(demo, Request(question("What is the capital of Italy?"), GREEDY))
    again = run(demo, Request(question("What is the capital of Italy?"), GREEDY))
    assert again[0] == first[0] and again[2].usage.cached == again[2].usage.prompt - 1


def test_a_thought_is_closed_at_its_limit_and_an_answer_follows(demo: LlamaEngine) -> None:
    span = SpanLimit(tokens.CHANNEL, tokens.CHANNEL_END, 5, SPAN.insert)
    _, pieces, done = run(demo, Request(question("What is 347 + 586?", thinking=True), GREEDY, span))
    assert [p.marker for p in pieces if p.marker][:2] == [tokens.CHANNEL, tokens.CHANNEL_END]
    assert done.usage.thinking == 7 and done.usage.answer >= 1 and done.reason == "stop"


def test_max_tokens_counts_the_answer_alone(demo: LlamaEngine) -> None:
    sampling = Sampling(temperature=0, max_tokens=2)
    _, _, done = run(demo, Request(question("What is 347 + 586?", thinking=True), sampling, SPAN))
    assert done.reason == "length" and done.usage.answer == 2 and done.usage.thinking > 20


@pytest.mark.parametrize("stop, expected", [("Paris", "The capital of France is "), ("al of", "The capit"), ("xyz", None)])
def test_stop_strings_are_cut_out(demo: LlamaEngine, stop: str, expected: str | None) -> None:
    text, _, done = run(demo, Request(question("What is the capital of France?"), Sampling(temperature=0, stop=(stop,))))
    assert text == (expected or "The capital of France is Paris.")
    assert done.reason == ("stop_string" if expected else "stop")


def test_seed_repeats_and_logprobs_are_those_of_the_logits(demo: LlamaEngine) -> None:
    sampling = Sampling(temperature=1.5, seed=7, logprobs=3, max_tokens=12)
    first = run(demo, Request(question("Hello!"), sampling))
    again = run(demo, Request(question("Hello!"), sampling))
    assert [p.token for p in first[1]] == [p.token for p in again[1]]
    for piece in first[1]:
        assert piece.logprob is not None and len(piece.logprob.top) == 3
        assert piece.logprob.logprob <= piece.logprob.top[0][2] + 1e-6 <= 1e-5


def test_every_sampler_can_be_used(demo: LlamaEngine) -> None:
    sampling = Sampling(
        min_p=0.05, repeat_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1, dry_multiplier=0.8, seed=1,
        logit_bias={500: -5.0}, max_tokens=20, penalty_last_n=-1,
    )  # fmt: skip
    assert run(demo, Request(question("Hello!"), sampling))[2].reason in ("stop", "length")


def test_text_never_becomes_a_control_token(demo: LlamaEngine) -> None:
    controls = {demo.tokenize(Prompt((Control(name),)))[0] for name in tokens.EVERY_CONTROL if name != "<audio|>"}
    for name in tokens.EVERY_CONTROL:
        text = f"a{name}b {name}{name}\n<{name}>"
        ids = demo.tokenize(Prompt((Text(text),)))
        assert not controls & set(ids)
        assert b"".join(demo._model.vocab.piece(i) for i in ids).decode() == text


def test_texts_of_late_are_not_tokenised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "REMEMBERED", 40)
    model = model_module.Model(DEMO / "text.gguf", LoadOptions(gpu_layers=0))
    vocabulary, asked = model.vocab, list[str]()
    plain = vocabulary._ids_of
    monkeypatch.setattr(vocabulary, "_ids_of", lambda text: asked.append(text) or plain(text))
    texts = ["The capital of France", "is <|turn> Paris", "x" * 50, "The capital of France", "is <|turn> Paris"]
    for text in texts:
        first = vocabulary.text(text)
        assert first == plain(text)
        first.append(0)  # what was given out is the caller's
    assert asked == texts[:3], "too long a text is not kept, and pushes nothing out"
    assert vocabulary.text("another text of some length") and vocabulary.text(texts[0]) == plain(texts[0])
    assert asked[3:] == ["another text of some length", texts[0]], "the oldest made room"
    model.close()


def test_cancel_in_prefill_and_in_decode(demo: LlamaEngine) -> None:
    long = question("word " * 6000)
    for request, delay in ((Request(long, GREEDY), 0.2), (Request(question("Hello!"), Sampling(logit_bias=NEVER_STOP)), 0.3)):
        cancel, asked = CancelToken(), []
        timer = threading.Timer(delay, lambda: (asked.append(time.perf_counter()), cancel.cancel()))  # noqa: B023
        timer.start()
        _, _, done = run(demo, request, cancel)
        assert done.reason == "cancelled" and time.perf_counter() - asked[0] < 0.3
    assert run(demo, Request(question("What is the capital of France?"), GREEDY))[0] == "The capital of France is Paris."


def test_leaving_the_loop_frees_the_engine(demo: LlamaEngine) -> None:
    stream = demo.generate(Request(question("Hello!"), Sampling(logit_bias=NEVER_STOP)))
    next(o for o in stream if isinstance(o, Piece))
    stream.close()  # type: ignore[attr-defined]
    assert run(demo, Request(question("What is the capital of France?"), GREEDY))[2].reason == "stop"


def test_too_long_and_too_large_are_refused_with_both_numbers() -> None:
    engine = open_engine(DEMO / "text.gguf", DEMO / "mmproj.gguf", LoadOptions(ctx=512, image_tokens=70))
    with pytest.raises(ContextOverflow, match="512"):
        engine.generate(Request(question("word " * 600)))
    picture = pixels(Image.new("RGB", (672, 480)))
    with pytest.raises(PictureTooLarge, match=r"140 tokens.*70"):
        engine.generate(Request(prompt_of("<bos><__media__>hi", [picture])))
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine.generate(Request(question("Hello!")))


def test_a_foreign_or_broken_file_is_a_typed_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((DEMO / "text.gguf").read_bytes()[:100_000])
    with pytest.raises(BadModelFile):
        open_engine(broken, None, LoadOptions())
    with pytest.raises(BadModelFile, match=r"text\.gguf"):
        open_engine(DEMO / "text.gguf", DEMO / "text.gguf", LoadOptions())


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo model in F32 and its projector in F32, corrected."""
    if not SHARED.exists():
        pytest.skip("needs the trained safetensors' golden logits in ../shared/demo-model")
    from localgemma.files import projector

    folder = tmp_path_factory.mktemp("exact")
    bindings = library.load()
    params = bindings.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = 0, True
    text = folder / "f32.gguf"
    import ctypes

    assert bindings.llama_model_quantize(os.fsencode(SHARED / "gguf/bf16.gguf"), os.fsencode(text), ctypes.byref(params)) == 0
    return text, projector.corrected(SHARED / "gguf/mmproj-f32.gguf", folder)[0]


@pytest.mark.parametrize("flash, reach", [(False, 0.01), (True, 0.03)])
def test_logits_are_those_of_transformers(exact: tuple[Path, Path], flash: bool, reach: float) -> None:
    # All rows of a ubatch at once, as a prefill evaluates them: llama.cpp's CPU flash attention takes another kernel for
    # blocks under 256 rows, and differs by up to 0.056 there (prompt "long"); without flash attention 0.004 either way.
    golden = np.load(SHARED / "golden.npz")
    engine = open_engine(*exact, LoadOptions(kv="f32", flash_attention=flash, ctx=2048, outputs=1120))
    worst = {}
    for name, case in json.loads(str(golden["index"])).items():
        pictures = [pixels(Image.open(SHARED / file)) for file in case["images"]]
        prompt = prompt_of(case["prompt"] + case["completion"], pictures)
        wanted = [int(i) for i in golden[f"{name}.ids"]]
        ids = engine.tokenize(prompt)
        assert [a for a, b in zip(ids, wanted, strict=True) if a != -1 and a != b] == []
        differences = []
        for start, rows in engine.score(prompt):
            best, values = golden[f"{name}.top_ids"][start:], golden[f"{name}.top_logits"][start:]
            for row, logits in enumerate(rows):
                assert logits.argmax() == best[row][0]
                differences.append(np.abs(logits[best[row]] - values[row]).max())
        worst[name] = float(max(differences))
    engine.close()
    print(f"largest difference of a top-20 logit, flash attention {flash}:", {k: round(v, 4) for k, v in worst.items()})
    assert max(worst.values()) <= reach
