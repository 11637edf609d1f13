"""`localgemma bench`: how fast a model loads, reads (prefill) and writes (decode) on this machine."""

from __future__ import annotations

import json
import statistics
import time
from typing import TYPE_CHECKING, Any

import click

from localgemma.cli.chat import open_model
from localgemma.cli.output import Output
from localgemma.cli.plan import wishes_of
from localgemma.engine import Control, Finished, Prompt, Request, Text
from localgemma.errors import BackendError
from localgemma.gemma4.tokens import BOS, IDS, STOPS
from localgemma.options import KV_TYPES, Sampling

if TYPE_CHECKING:
    from localgemma.engine import Engine

_SENTENCE = "Later the rain fell on the round house and the farm. "
_NEVER = {IDS[name]: -10_000.0 for name in STOPS}  # the answer must not end before its length


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", default="demo")
@click.option("--prompt-tokens", default=512, show_default=True, type=click.IntRange(16), help="Tokens to read.")
@click.option("--tokens", default=128, show_default=True, type=click.IntRange(2), help="Tokens to write.")
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1), help="Runs; the median counts.")
@click.option("--ctx", type=int, metavar="N", help="Context in tokens.")
@click.option("--kv", type=click.Choice(KV_TYPES), help="Type of the KV cache.")
@click.option("--gpu-layers", type=int, metavar="N", help="Layers on the GPU; 0 is none, -1 all.")
@click.option("--json", "only_json", is_flag=True, help="Only the JSON line.")
def command(
    model: str, prompt_tokens: int, tokens: int, repeat: int, ctx: int | None, kv: Any, gpu_layers: int | None, only_json: bool
) -> None:
    """Measure MODEL with Gemma's own sampling; a table, then one JSON line."""
    wishes = wishes_of(ctx, kv, gpu_layers, (), None, None, no_pictures=True, no_draft=True)
    output = Output(quiet=only_json)
    start = time.perf_counter()
    with open_model(model, None, wishes, output) as opened:
        loaded = opened.info.load_seconds or time.perf_counter() - start
        _run(opened.engine, -1, 16, 4)  # the first evaluation pays for set-up
        runs = [_run(opened.engine, index, prompt_tokens, tokens) for index in range(repeat)]
        info = opened.info
    result = {
        "model": info.model, "quant": info.quant, "backend": info.backend, "context": info.context,
        "load_s": round(loaded, 3),
        "prompt_tokens": runs[0].usage.prompt,
        "prefill_tokens_per_s": round(statistics.median(run.timings.prefill_speed for run in runs), 2),
        "first_token_s": round(statistics.median(run.timings.first_token for run in runs), 4),
        "tokens": min(run.usage.answer + run.usage.thinking for run in runs),
        "decode_tokens_per_s": round(statistics.median(run.timings.decode_speed for run in runs), 2),
        "runs": repeat,
    }  # fmt: skip
    if not only_json:
        _table(result)
    click.echo(json.dumps(result))


def _run(engine: Engine, index: int, prompt_tokens: int, tokens: int) -> Finished:
    """One generation of a prompt that no earlier run began with, so that nothing of it is in the cache."""
    head = f"{index + 2} {'ABCDEFGHIJ'[index % 10]} "
    words = _SENTENCE.split() * prompt_tokens  # a token a word at least
    length = prompt_tokens
    prompt = Prompt((Control(BOS), Text(head + " ".join(words[:length]))))
    while length > 1 and (over := engine.count(prompt) - prompt_tokens) > 0:
        length -= max(1, over // 4)
        prompt = Prompt((Control(BOS), Text(head + " ".join(words[:length]))))
    sampling = Sampling(seed=index + 1, max_tokens=tokens, logit_bias=_NEVER)
    for output in engine.generate(Request(prompt, sampling)):
        if isinstance(output, Finished):
            return output
    raise BackendError("The model gave no end of its answer.")


def _table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['model']} {result['quant']} on {result['backend']}".replace("  ", " "))
    table.add_column("measured")
    table.add_column("value", justify="right")
    table.add_row("load", f"{result['load_s']:.2f} s")
    table.add_row(f"prefill, {result['prompt_tokens']:,} tokens", f"{result['prefill_tokens_per_s']:,.1f} tokens/s")
    table.add_row("first token", f"{result['first_token_s'] * 1000:,.0f} ms")
    table.add_row(f"decode, {result['tokens']:,} tokens", f"{result['decode_tokens_per_s']:,.1f} tokens/s")
    Console(width=72).print(table)
