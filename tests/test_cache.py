"""Prefix reuse: what is evaluated again after each kind of turn, that it is always right, and states on disk."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import walks
from hypothesis import given
from hypothesis import strategies as st

from localgemma.chat.conversation import Conversation, collect
from localgemma.engine import Control, Finished, KeepsState, Media, Prompt, Request, Text, join_parts
from localgemma.errors import BadState, NotFound
from localgemma.gemma4.prompt import render
from localgemma.llamacpp import library
from localgemma.llamacpp.cache import Checkpoint, Slot, common_prefix, least_useful, outside_picture
from localgemma.llamacpp.engine import LlamaEngine, open_engine
from localgemma.llamacpp.vision import Projector
from localgemma.messages import Event, Message, TextPart, Usage
from localgemma.options import ChatOptions, LoadOptions, Sampling

DEMO = Path(__file__).parents[1] / "localgemma" / "assets" / "demo"
LONG = LoadOptions(ctx=12288, ubatch=512, image_tokens=70, threads=1)
GREEDY = Sampling(temperature=0)


def demo(options: LoadOptions = LONG) -> LlamaEngine:
    return open_engine(DEMO / "text.gguf", DEMO / "mmproj.gguf", options)


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaEngine]:
    opened = demo()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def exact(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo model in F16, where the size of a batch flips no greedy choice."""
    bindings, target = library.load(), tmp_path_factory.mktemp("exact") / "f16.gguf"
    params = bindings.llama_model_quantize_default_params()
    params.ftype = 1
    source = os.fsencode(shared / "demo-model/gguf/bf16.gguf")
    assert bindings.llama_model_quantize(source, os.fsencode(target), ctypes.byref(params)) == 0
    return target, DEMO / "mmproj.gguf"


@given(st.lists(st.integers(0, 1), max_size=5000), st.lists(st.integers(0, 1), max_size=40), st.integers(0, 5000))
def test_a_common_prefix_is_the_longest(held: list[int], rest: list[int], cut: int) -> None:
    keys = [*held[:cut], *rest]
    size = common_prefix(held, keys)
    assert held[:size] == keys[:size]
    assert size == min(len(held), len(keys)) or held[size] != keys[size]


@pytest.mark.parametrize("position, expected", [(0, 0), (1, 1), (2, 1), (4, 1), (5, 5), (6, 6), (9, 9)])
def test_no_picture_is_split(position: int, expected: int) -> None:
    assert outside_picture([7, "a", "a", "a", "a", 8, "b", "b"], position) == expected


@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 50)), min_size=1, max_size=9, unique_by=lambda pair: pair[0]))
def test_the_checkpoint_that_goes_saves_least_for_its_age(pairs: list[tuple[int, int]]) -> None:
    made = [Checkpoint(end, None, used) for end, used in sorted(pairs)]
    slot = Slot(0, checkpoints=made)
    keep = made[-1]
    found = least_useful([slot], 50, keep)
    assert (found is None) == (len(made) == 1)
    if found:
        before = dict(zip([c.end for c in made], [0, *[c.end for c in made]], strict=False))
        worth = {c.end: (c.end - before[c.end]) / (51 - c.used) for c in made[:-1]}
        assert found[1] is not keep and worth[found[1].end] == min(worth.values())


def test_branches_survive_joining_and_are_no_part_of_the_text() -> None:
    parts = join_parts([Text("ab", (1,)), Text(""), Text("cd", (0, 2)), Control("<bos>"), Text("e", (1,))])
    assert parts == (Text("abcd"), Control("<bos>"), Text("e")) and isinstance(parts[0], Text)
    assert parts[0].branches == (1, 2, 4)
    (text,) = Prompt((Text("x", (1,)), Media("", (Text("yz", (1,)),)))).flat()
    assert isinstance(text, Text) and text == Text("xyz") and text.branches == (1, 2)


def test_prompts_say_where_they_branch() -> None:
    content = [{"type": "text", "text": "word " * 1000}, {"type": "text", "text": "What is it about?"}]
    document = {"role": "user", "content": content}
    said = [Message("user", (TextPart("Hi"),)), Message("assistant", (TextPart("Hello."),)), document]
    system = Message("system", (TextPart("Be brief."),))
    for thinking in (False, True):
        prompt = render([system, *said], enable_thinking=thinking)
        marked = [(part.text[:at], part.text[at:]) for part in prompt.parts if isinstance(part, Text) for at in part.branches]
        assert marked[0] == ("\n", "") and marked[-1] == ("model\n", "")
        assert [pair for pair in marked if pair[1] == "What is it about?"] and len(marked) == 3


@pytest.mark.live
@pytest.mark.parametrize("sequences", [1, 3])
def test_walks_give_what_a_fresh_evaluation_gives(exact: tuple[Path, Path], shared: Path, full: bool, sequences: int) -> None:
    seeds = range(1000 if full and sequences == 1 else 3)
    twin = walks.run(exact, shared / "demo-model/eval.jsonl", seeds, sequences=sequences)
    noise = max(max(twin.noise), 0.016)  # 0.016: the noise of 60 walks
    assert max(twin.logits) <= 1.5 * noise, (max(twin.logits), noise)
    assert max(twin.flips, default=0) <= noise, twin.flips  # another answer only where two tokens tie


def history(tokens: int) -> list[Message]:
    """A conversation of about `tokens` tokens of the demo model, in turns of about 400."""
    said: list[Message] = []
    for turn in range(tokens // 420):
        said += [
            Message("user", (TextPart(f"{turn} " + "river stone " * 200),)),
            Message("assistant", (TextPart("Yes. Go on."),)),
        ]
    return said


@pytest.mark.live
@pytest.mark.parametrize("thinking", [False, True])
def test_a_turn_after_a_long_history_reads_what_is_new(engine: LlamaEngine, full: bool, thinking: bool) -> None:
    size = 8600 if full else 2600
    options = ChatOptions(thinking=thinking, think_budget=600, repetition_guard=False)
    chat = Conversation(
        engine, "Be brief.", options, replace(GREEDY, logit_bias={1: -99.0, 106: -99.0}), history=history(size)
    )
    document = Conversation(engine, None, ChatOptions(), GREEDY)
    document.ask("river stone " * 1500 + "What is it?", max_tokens=2)
    changed = usage_of(document.edit(-2, "river stone " * 1500 + "How many?", max_tokens=2))
    assert changed.prompt > 3000 and changed.prompt - changed.cached <= 600
    first = chat.ask("What is 347 + 586?", max_tokens=300)
    assert first.usage.prompt > (8000 if full else 2200)
    answer = len(engine.tokenize(Prompt((Text(first.content),))))
    assert answer > 100 and first.usage.thinking > (10 if thinking else -1)
    second = chat.ask("And 5 + 6?", max_tokens=4)
    new = len(engine.tokenize(Prompt((Text("user And 5 + 6?"),))))
    assert second.usage.prompt - second.usage.cached <= answer + new + 64
    again = usage_of(chat.regenerate(max_tokens=4))
    assert again.prompt - again.cached <= 64
    edited = usage_of(chat.edit(-2, "And 6 + 7?", max_tokens=4))
    assert edited.prompt - edited.cached <= answer + new + 64
    chat.undo()
    third = chat.ask("And 7 + 8?", max_tokens=4)
    assert third.usage.prompt - third.usage.cached <= answer + new + 64
    other = Conversation(engine, "Be brief.", replace(options, thinking=not thinking), GREEDY)
    assert other.ask("Hello!", max_tokens=2).usage.cached < 64  # another beginning is read again


def usage_of(events: Iterator[Event]) -> Usage:
    """The usage of a turn."""
    return collect(events).usage


@pytest.mark.live
def test_a_picture_is_encoded_once_and_evaluated_once(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"encoded": 0, "evaluated": 0}
    encode, evaluate = Projector._encode, engine._context.decode_picture
    monkeypatch.setattr(Projector, "_encode", lambda *a: (counts.update(encoded=counts["encoded"] + 1), encode(*a))[1])
    counted = lambda *a: (counts.update(evaluated=counts["evaluated"] + 1), evaluate(*a))[1]  # noqa: E731
    monkeypatch.setattr(engine._context, "decode_picture", counted)
    chat = Conversation(engine, None, ChatOptions(thinking=True, think_budget=50), GREEDY)
    chat.ask("What color is it?", [walks.picture(11)], max_tokens=30)
    for turn in range(10):
        chat.ask(f"And {turn} + 1? " + "river " * 60, max_tokens=60)
    assert counts == {"encoded": 1, "evaluated": 1}


@pytest.mark.live
def test_memory_stays_inside_the_announced_bound(full: bool) -> None:
    small = replace(LONG, ctx=8192, checkpoint_bytes=16 << 20)
    engine = demo(small)
    assert engine.info.checkpoint_bytes == 16 << 20
    chat = Conversation(engine, None, ChatOptions(overflow="drop", repetition_guard=False), GREEDY)
    process, read, peak, settled = psutil.Process(), 0, 0, 0
    for turn in range(300 if full else 15):
        usage = chat.ask(f"{turn} " + "river stone " * 90, max_tokens=20).usage
        read += usage.prompt - usage.cached + usage.answer
        assert engine._cache.bytes <= 16 << 20
        if turn == 9:
            settled = process.memory_info().rss
        peak = max(peak, process.memory_info().rss)
    engine.close()
    print(f"{read:,} tokens read, {(peak - settled) / 2**20:.1f} MiB more than after 10 turns")
    assert read >= (60_000 if full else 2_000)
    assert peak - settled <= (16 << 20) + (8 << 20)


def answered(engine: LlamaEngine, prompt: Prompt) -> tuple[list[int], int]:
    outputs = list(engine.generate(Request(prompt, replace(GREEDY, max_tokens=12))))
    done = outputs[-1]
    assert isinstance(done, Finished)
    return walks.tokens(outputs), done.usage.cached


@pytest.mark.live
@pytest.mark.parametrize("sequences", [1, 2])
def test_a_state_comes_back_in_another_engine(exact: tuple[Path, Path], tmp_path: Path, sequences: int) -> None:
    options = replace(LONG, ctx=2048, sequences=sequences)
    first = open_engine(*exact, options)
    assert isinstance(first, KeepsState)
    chat = Conversation(first, "Be brief.", ChatOptions(thinking=True, think_budget=60), GREEDY, history=history(800))
    chat.ask("What color is it?", [walks.picture(3)], max_tokens=30)
    info = first.save_state(chat.prompt(), tmp_path / "state")
    assert info is not None and info.tokens > 500 and info.pictures > 0 and info.bytes == (tmp_path / "state").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    expected = answered(first, chat.prompt())
    first.close()
    second = open_engine(*exact, replace(options, ctx=4096, ubatch=256))
    loaded = second.load_state(tmp_path / "state")
    assert (loaded.tokens, loaded.pictures) == (info.tokens, info.pictures)
    found = answered(second, chat.prompt())
    assert found == expected and found[1] == info.tokens
    second.close()


@pytest.mark.live
def test_a_state_that_is_damaged_or_foreign_is_refused(engine: LlamaEngine, tmp_path: Path) -> None:
    good = tmp_path / "state"
    with pytest.raises(NotFound):
        engine.load_state(good)
    prompt = render([Message("user", (TextPart("river " * 300),))])
    expected = answered(engine, prompt)[0]
    assert engine.save_state(prompt, good) is not None
    data = good.read_bytes()
    bad = tmp_path / "bad"
    rng = np.random.default_rng(1)
    cuts = [0, 1, 47, 48, *rng.integers(0, len(data), 12).tolist(), len(data) - 1]
    for broken in [data[:cut] for cut in cuts] + [b"x" * 100, data + b"x", data[:100] + b"x" + data[101:], data[1:]]:
        bad.write_bytes(broken)
        with pytest.raises(BadState):
            engine.load_state(bad)
    flips = rng.integers(0, len(data), 20).tolist()
    for at in flips:
        bad.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(BadState):
            engine.load_state(bad)
    assert answered(engine, prompt) == (expected, engine.count(prompt) - 1)
    for other, word in (
        (replace(LONG, kv="q8_0"), "KV cache"),
        (replace(LONG, flash_attention=False), "KV cache"),
        (replace(LONG, ctx=256), "256"),
    ):
        opened = demo(other)
        with pytest.raises(BadState, match=word):
            opened.load_state(good)
        assert answered(opened, render([Message("user", (TextPart("Hello!"),))]))[0]
        opened.close()
    copy = tmp_path / "other.gguf"
    shutil.copy(DEMO / "text.gguf", copy)
    with copy.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"\0" * 64)
    opened = open_engine(copy, None, LONG)
    with pytest.raises(BadState, match="another model"):
        opened.load_state(good)
    opened.close()
