"""Videos: which frames are seen, when, and how large; files that are no video, or only half of one."""

from __future__ import annotations

import hashlib
import json
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fakes import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from videos import REFERENCE, make_video, picture

from localgemma.chat.clip import kind_of
from localgemma.chat.conversation import Conversation
from localgemma.chat.room import Room
from localgemma.chat.video import forecast, frames, plan
from localgemma.engine import Media
from localgemma.errors import BadMedia, ContextOverflow, UsageError
from localgemma.gemma4.prompt import video
from localgemma.gemma4.video import moments, shown
from localgemma.messages import Notice, Pixels, VideoPart
from localgemma.options import ChatOptions

DATA = Path(__file__).parent / "data" / "video.json"
OPTIONS = ChatOptions()


def video_part(path: Path, options: ChatOptions, budget: int | None = None, context: int = 1 << 20) -> VideoPart | None:
    """The video as a conversation reads it."""
    planned = plan(f"{path}#{budget}" if budget else path, options, Room(context, len))
    if planned is None:
        return None
    (part,) = [part for part in planned.read() if isinstance(part, VideoPart)]
    return part


def spelled(part: VideoPart) -> str:
    """The video as transformers writes it into a prompt."""
    out = ""
    for piece in video(part.frames).content:
        out += "<|video|>" * piece.tokens if isinstance(piece, Pixels) else getattr(piece, "text", "") or piece.marker
    return out


def mean(pixels: Pixels) -> float:
    return float(np.frombuffer(pixels.rgb, np.uint8).mean())


@pytest.mark.parametrize("name", REFERENCE)
def test_frames_times_and_prompt_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    spec, sampling, budget = REFERENCE[name]
    wanted = json.loads(DATA.read_text())[name]
    options = ChatOptions(video_fps=sampling.get("fps"), video_frames=sampling.get("num_frames", 60))
    path = make_video(tmp_path, name, **spec)
    part = video_part(path, options, budget)
    assert part is not None
    assert [round(seconds * float(spec["rate"])) for seconds, _ in part.frames] == wanted["indices"]
    assert [f"{int(s // 60):02d}:{int(s % 60):02d}" for s, _ in part.frames] == wanted["times"]
    assert {(p.width, p.height, p.tokens) for _, p in part.frames} == {(*wanted["size"], wanted["tokens"])}
    assert hashlib.sha256(spelled(part).encode()).hexdigest() == wanted["prompt"]
    for (_, pixels), brightness in zip(part.frames, wanted["means"], strict=True):
        assert mean(pixels) == pytest.approx(brightness, abs=0.6)
    expected = forecast(path, options, budget)
    assert expected is not None and (expected.frames, expected.each) == (len(part.frames), wanted["tokens"])


@settings(deadline=None)
@given(st.integers(1, 5000), st.fractions(Fraction(1, 2), 120), st.integers(1, 80))
def test_even_frames_are_sampled_by_number(total: int, rate: Fraction, count: int) -> None:
    count = min(count, total)
    found = shown(((Fraction(i) / rate, i) for i in range(total)), moments(total / rate, None, count, total))
    assert [i for _, i in found] == [i * total // count for i in range(count)]


def test_uneven_frames_are_sampled_by_time(tmp_path: Path) -> None:
    path, times = tmp_path / "vfr.mkv", [0, 100, 150, 1900, 2000, 2050, 2100, 5500, 7000]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = 96, 96, "yuv420p", Fraction(1, 1000)
        for index, pts in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index, (96, 96)), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert [round(seconds, 2) for seconds, _ in frames(path, OPTIONS)] == [0, 0.15, 2, 2.1, 5.5]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_and_stretched_pictures_stand_as_they_are_shown(tmp_path: Path, degrees: int) -> None:
    path = make_video(tmp_path, "plain.mp4", count=4, rate=4, size=(192, 96))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 0x10000
    matrix = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        data[at + place : at + place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    (_, first), *_ = frames(path, OPTIONS)
    shown_as = np.frombuffer(first.rgb, np.uint8).reshape(first.height, first.width, 3).astype(int)
    assert (first.width > first.height) == (degrees == 180)
    half = {90: shown_as[: first.height // 3], 180: shown_as[:, -first.width // 3 :], 270: shown_as[-first.height // 3 :]}
    assert half[degrees].mean() > shown_as.mean() + 3  # the bright half was at the left


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3)
        for index in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index, (96, 96)), format="rgb24")))
        container.mux(stream.encode())
    (_, first), *_ = frames(path, OPTIONS)
    assert first.width / first.height == pytest.approx(3, rel=0.25)


@pytest.mark.parametrize(("kind", "frame"), [("gif", 400), ("webp", 250), ("png", 500)])
def test_animations(tmp_path: Path, kind: str, frame: int) -> None:
    path = tmp_path / f"a.{kind}"
    pictures = [Image.new("RGB", (96, 96), (index * 20, 0, 0)) for index in range(10)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=frame, loop=0)
    found = list(frames(path, OPTIONS))
    duration = Fraction(frame * 10, 1000)
    count = int(duration)
    assert [round(s * 1000) for s, _ in found] == [
        (i * duration / count // Fraction(frame, 1000)) * frame for i in range(count)
    ]
    pictures[0].save(path)
    assert forecast(path, OPTIONS) is None if kind_of(path) else True
    events = list(Conversation(FakeEngine()).send("What?", images=[path]))
    assert not any(isinstance(event, Notice) and "frame" in event.text for event in events)


def test_a_video_in_a_conversation(tmp_path: Path) -> None:
    path = make_video(tmp_path, "clip.mp4", count=30, rate=10)
    engine = FakeEngine()
    chat = Conversation(engine)
    events = list(chat.send("What moves?", images=[f"{path}#140"]))
    (notice,) = [event.text for event in events if isinstance(event, Notice)]
    assert notice.endswith("clip.mp4 → 3 frames, 414 tokens, 0.86 MiB") or "3 frames, " in notice
    media = [part for part in engine.requests[0].prompt.parts if isinstance(part, Media)]
    assert [part.mark for part in media] == ["<|video|>"]
    chat.save(tmp_path / "kept")
    again = Conversation(FakeEngine())
    again.load(tmp_path / "kept")
    assert again.history[0].content == chat.history[0].content
    with pytest.raises(UsageError, match="70, 140 or 280"):
        chat.send("What?", images=[f"{path}#560"])


def test_more_than_the_context_holds_is_said_before_decoding(tmp_path: Path) -> None:
    path = make_video(tmp_path, "clip.mp4", count=400, rate=10)
    with pytest.raises(ContextOverflow, match=r"40 frames fit: --frames \d+") as caught:
        Conversation(FakeEngine(context=2000)).send("What?", images=[path])
    fitting = int(str(caught.value).split("--frames ")[1].split(";")[0])
    part = video_part(path, ChatOptions(video_frames=fitting), context=2000)
    assert part is not None and len(part.frames) == fitting


def broken(folder: Path) -> dict[str, Path]:
    """Files that are no whole video."""
    whole = make_video(folder, "whole.mp4", count=60, rate=20).read_bytes()
    made = {"cut.mp4": whole[: len(whole) // 2], "head.mp4": whole[:40], "noise.mp4": b"\0\0\0\x18ftypmp42" + b"\x55" * 5000}
    made |= {"list.mkv": b"\x1aE\xdf\xa3" + b"#EXTM3U\nhttp://127.0.0.1:9/a.ts\n" * 20}
    for name, data in made.items():
        (folder / name).write_bytes(data)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with av.open(str(folder / "empty.mov"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        container.start_encoding()
    return {name: folder / name for name in [*made, "sound.mp4", "empty.mov"]}


def test_what_is_no_video_is_said_in_one_sentence(tmp_path: Path) -> None:
    for name, path in broken(tmp_path).items():
        with pytest.raises(BadMedia) as caught:
            video_part(path, OPTIONS)
        assert name in caught.value.message and "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_video_that_was_cut_off_shows_what_is_there(tmp_path: Path) -> None:
    whole = make_video(tmp_path, "whole.mkv", count=200, rate=20).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    found = list(frames(tmp_path / "cut.mkv", OPTIONS))
    assert 3 <= len(found) < 10 and [int(s) for s, _ in found[:-1]] == list(range(len(found) - 1))


def test_bytes_at_random_end_in_a_sentence(tmp_path: Path, full: bool) -> None:
    whole = make_video(tmp_path, "whole.mp4", count=20, rate=10, size=(64, 64)).read_bytes()
    for seed in range(1000) if full else [*range(40), 107]:  # 107: a time far before the others
        rng, data = random.Random(seed), bytearray(whole)
        for _ in range(rng.randint(1, 40)):
            data[rng.randrange(16, len(data))] = rng.randrange(256)
        (tmp_path / "bad.mp4").write_bytes(data)
        try:
            part = video_part(tmp_path / "bad.mp4", OPTIONS)
            assert part is not None and part.frames
        except BadMedia:
            pass


def test_a_long_video_is_sampled_evenly(tmp_path: Path) -> None:
    path = make_video(tmp_path, "long.mp4", count=6000, rate=10, size=(64, 64), gop=50)
    found = frames(path, OPTIONS)
    assert next(found)[0] == 0
    rest = list(found)
    assert [round(seconds * 10) for seconds, _ in rest] == [100 * i for i in range(1, 60)]


def test_kinds() -> None:
    assert kind_of("https://a/b.mp4") is None and kind_of(b"123") is None and kind_of("missing.mp4") is None
