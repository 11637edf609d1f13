"""The root records: errors, sizes, options, settings and prompts."""

from __future__ import annotations

import contextlib
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localgemma import errors, settings
from localgemma.engine import Control, Media, Prompt, Text, join_parts
from localgemma.errors import ContextOverflow, DecodeError, LocalgemmaError, PictureTooLarge, UsageError
from localgemma.options import IMAGE_BUDGETS, ChatOptions, LoadOptions, Sampling, updated
from localgemma.units import GIB, KIB, MIB, TIB, format_duration, format_size, parse_size


def every_error() -> list[type[LocalgemmaError]]:
    """The whole error tree; what a room derives for its own use alone is no part of it."""
    found = [LocalgemmaError]
    for kind in found:
        found += [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return found


def example(kind: type[LocalgemmaError], hint: str | None) -> LocalgemmaError:
    """An error of this kind."""
    if issubclass(kind, (ContextOverflow, PictureTooLarge)):
        return kind(5000, 4096, hint)
    if issubclass(kind, DecodeError):
        return kind("It failed.", -3, hint)
    return kind("It failed.", hint)


@pytest.mark.parametrize("hint", [None, "", "Do this."])
@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling(kind: type[LocalgemmaError], hint: str | None) -> None:
    error = example(kind, hint)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.exit_code == error.exit_code


def test_the_error_tree_in_the_docstring_is_the_tree() -> None:
    written = {}
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
        if words and words[0].isidentifier() and hasattr(errors, words[0]):
            written[words[0]] = int(words[2] if words[1] == "exit" else words[1])
    assert written == {kind.__name__: kind.exit_code for kind in every_error()}


def test_an_error_says_what_happened_and_what_to_do() -> None:
    assert str(UsageError("No.", "Try yes.")) == "No. Try yes."
    assert str(UsageError("No.")) == "No."
    assert "--ctx" in str(ContextOverflow(5000, 4096)) and "5,000" in str(ContextOverflow(5000, 4096))
    assert errors.BadModelFile("Bad.").hint and not errors.BadModelFile("Bad.", "").hint


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *[(text, 24 * GIB) for text in ("24", "24G", "24GB", " 24 gib ")],
        *[("512M", 512 * MIB), ("1.5k", 1536), (".5T", TIB // 2), ("0", 0)],
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1e3", "1.2.3", "24 X", "24GiBs", "nan", "inf", "99999999T", "1२ x"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_a_bare_number_counts_in_the_default_unit() -> None:
    assert parse_size("3", default_unit="m") == 3 * MIB
    assert parse_size("3k", default_unit="m") == 3 * KIB


@given(st.integers(min_value=KIB, max_value=1 << 50))
def test_a_printed_size_reads_back_to_three_digits(size: int) -> None:
    assert parse_size(format_size(size).replace(",", "")) == pytest.approx(size, rel=6e-3)


@given(st.integers(1, 999), st.sampled_from(["KiB", "MiB", "GiB"]))
def test_whole_sizes_round_trip(number: int, unit: str) -> None:
    assert format_size(parse_size(f"{number} {unit}")) == f"{number} {unit}"


def test_an_endless_number_is_refused() -> None:
    with pytest.raises(UsageError):
        parse_size("1" * 400)


@given(st.text())
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_size(text) >= 0


def test_sizes_and_durations_are_printed() -> None:
    sizes = {0: "0 B", 80: "80 B", 512 * MIB: "512 MiB", 17.4 * GIB: "17.4 GiB", -2 * KIB: "-2 KiB"}
    assert {size: format_size(size) for size in sizes} == sizes
    durations = {0.42: "0.4 s", 12: "12 s", 60: "1 min", 200: "3 min 20 s", 7500: "2 h 5 min", 7200: "2 h"}
    assert {seconds: format_duration(seconds) for seconds in durations} == durations


@pytest.mark.parametrize(
    ("record", "wrong", "near"),
    [
        (Sampling(), "temprature", "temperature"),
        (Sampling(), "topk", "top_k"),
        (LoadOptions(), "gpu_layer", "gpu_layers"),
        (ChatOptions(), "thinkin", "thinking"),
    ],
)
def test_an_unknown_option_names_the_near_one(record: Any, wrong: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        updated(record, {wrong: 1})
    assert wrong in caught.value.message
    assert near in caught.value.hint


def test_an_unknown_option_without_a_near_one_lists_all() -> None:
    with pytest.raises(UsageError) as caught:
        updated(ChatOptions(), {"zzz": 1})
    assert "overflow" in caught.value.hint and "thinking" in caught.value.hint


@pytest.mark.parametrize(
    ("record", "name", "value"),
    [
        (Sampling(), "temperature", -0.1),
        (Sampling(), "temperature", float("nan")),
        (Sampling(), "temperature", True),
        (Sampling(), "top_p", 1.1),
        (Sampling(), "top_k", 1.5),
        (Sampling(), "seed", 2**32),
        (Sampling(), "max_tokens", 0),
        (Sampling(), "stop", ("",)),
        (Sampling(), "logit_bias", {"a": 1}),
        (LoadOptions(), "ctx", 5),
        (LoadOptions(), "kv", "q3"),
        (LoadOptions(), "image_tokens", 100),
        (LoadOptions(), "sequences", 0),
        (ChatOptions(), "overflow", "wrap"),
        (ChatOptions(), "think_budget", -1),
    ],
)
def test_a_value_out_of_range_is_refused(record: Any, name: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        updated(record, {name: value})
    assert caught.value.message.startswith(name)
    assert caught.value.hint


def test_options_are_frozen_changed_by_copy_and_picklable() -> None:
    first = Sampling()
    second = updated(first, {"stop": "END", "seed": 7})
    assert (first.stop, second.stop, second.seed) == ((), ("END",), 7)
    assert pickle.loads(pickle.dumps(second)) == second
    with pytest.raises(AttributeError):
        first.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("tokens", IMAGE_BUDGETS)
def test_the_largest_picture_fits_into_a_physical_batch(tokens: int) -> None:
    assert LoadOptions(image_tokens=tokens).physical_batch >= max(512, tokens)
    assert LoadOptions(image_tokens=tokens, ubatch=64).physical_batch >= tokens


def test_settings_come_from_the_given_environment(tmp_path: Path) -> None:
    own = {"LOCALGEMMA_HOME": str(tmp_path / "own"), "HF_HUB_OFFLINE": "1", "HF_TOKEN": "t"}
    read = settings.load({"HOME": str(tmp_path), **own})
    assert read.data_dir == tmp_path / "own" / "data"
    assert read.offline and read.hub_token == "t"
    assert read.hub_endpoint == "https://huggingface.co"
    plain = settings.load({"HOME": str(tmp_path), "LOCALGEMMA_OFFLINE": "0"})
    assert not plain.offline and plain.hub_token is None
    assert plain.hub_cache == tmp_path / ".cache" / "huggingface" / "hub"


def test_the_tests_have_a_home_of_their_own(hermetic: Path) -> None:
    read = settings.load()
    assert read.data_dir.is_relative_to(hermetic)
    assert not read.offline and read.hub_token is None


def test_flat_joins_neighbouring_texts_also_across_pictures() -> None:
    picture = Media("<|image|>", (Text("b"), Control("<|image>"), Text("c")))
    prompt = Prompt((Control("<bos>"), Text("a"), picture, Text("d"), Media("x"), Text("e")))
    assert list(prompt.flat()) == [Control("<bos>"), Text("ab"), Control("<|image>"), Text("cde")]
    assert str(prompt) == "<bos>a<|image|>dxe"
    assert pickle.loads(pickle.dumps(prompt)) == prompt


PARTS = st.lists(st.one_of(st.builds(Text, st.text()), st.builds(Control, st.sampled_from(["<bos>", "<|turn>"]))))


@given(PARTS)
def test_flat_keeps_everything_in_order_and_no_two_texts_meet(parts: list[Text | Control]) -> None:
    flat = list(Prompt(tuple(parts)).flat())
    assert "".join(item.text for item in flat if not isinstance(item, tuple)) == str(Prompt(tuple(parts)))
    assert not any(isinstance(a, Text) and isinstance(b, Text) for a, b in itertools.pairwise(flat))
    assert [i for i in flat if isinstance(i, Control)] == [i for i in parts if isinstance(i, Control)]


@given(PARTS)
def test_joined_parts_render_as_before(parts: list[Text | Control]) -> None:
    joined = join_parts(parts)
    assert str(Prompt(joined)) == str(Prompt(tuple(parts)))
    assert join_parts(joined) == joined
    assert Text("") not in joined


def test_text_that_spells_a_control_token_stays_text() -> None:
    assert list(Prompt((Text("<bos>"), Text("<|turn>"))).flat()) == [Text("<bos><|turn>")]
