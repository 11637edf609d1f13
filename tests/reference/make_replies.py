"""Writes 500 well-formed replies and what transformers 5.24 reads in them: `python make_replies.py replies.jsonl.gz`.

Needs transformers 5.24 with its server's response template for Gemma 4; the tests read only the file.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from typing import Any

from transformers import __version__
from transformers.cli.serving.utils import _RESPONSE_TEMPLATE_FALLBACKS as TEMPLATES
from transformers.utils.chat_parsing.response_parser import parse_response

TEMPLATE = next(template for types, template in TEMPLATES.items() if "gemma4" in types)
Q = '<|"|>'
WORDS = [
    "the sum is 42.", "Grüße aus Köln", "東京は晴れ", "🙂🏽 ok", "مرحبا", "e\u0301 combined", "a < b > c | d", "<b>bold</b>",
    '{"k": [1, 2]}', "call:me{maybe:1}", '\\n and \\" stay', "50 %", "`x = {}`", '"quoted", he said', "it's", "$a_{i}$",
    "thought", "<tool", "<|",
]  # fmt: skip
NAMES = ["get_weather", "lookup", "f", "sum2", "_private", "Suche_im_Netz", "ask_größe"]
KEYS = ["location", "days", "unit", "deep", "tags", "x1", "größe", "note", "q_2", "items"]
PROMPTS = (
    "",
    "<bos><|turn>user\nHi<turn|>\n<|turn>model\n",
    "<bos><|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\n<channel|>",
    "<bos><|turn>user\nHi<turn|>\n<|turn>model\n<|tool_call>call:f{}<tool_call|>"
    '<|tool_response>response:f{value:<|"|>x<|"|>}<tool_response|>',
)
OPEN = "<bos><|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\n"


def prose(rng: random.Random, most: int = 8) -> str:
    """Words, white space between and perhaps around them."""
    text = rng.choice(["", "", "\n", "  ", "\n\n"])
    for _ in range(rng.randint(1, most)):
        text += rng.choice(WORDS) + rng.choice([" ", " ", "\n", "\n\n", "\t", ", "])
    return text


def value(rng: random.Random, depth: int = 0) -> str:
    """One argument in Gemma's syntax."""
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind < 2:
        return Q + rng.choice(["", "Paris", prose(rng, 4)]) + Q
    if kind == 2:
        return str(rng.choice([0, 7, -3, 10**18, -(10**25)]))
    if kind == 3:
        return rng.choice(["0.5", "-1.25e-7", "3E8", "1e5", "-0.0", "2.0"])
    if kind == 4:
        return rng.choice(["true", "false", "null"])
    if kind == 5:
        text = rng.choice(["plain", 'with "quotes"', "line\nbreak", "ünï", "{a:1}"])
        return json.dumps(text, ensure_ascii=rng.random() < 0.5)
    if kind == 6:
        return "[" + rng.choice([",", ", "]).join(value(rng, depth + 1) for _ in range(rng.randrange(4))) + "]"
    return arguments(rng, depth + 1)


def arguments(rng: random.Random, depth: int = 0) -> str:
    """A dict in Gemma's syntax, keys bare or quoted."""
    keys = rng.sample(KEYS, rng.randrange(5))
    comma, colon = rng.choice([(",", ":"), (",", ":"), (", ", ": "), (" ,\n ", " : ")])
    quoted = [rng.choice([key, key, key, Q + key + "-" + Q, '"' + key + '"']) for key in keys]
    return "{" + comma.join(key + colon + value(rng, depth) for key in quoted) + "}"


def reply(rng: random.Random) -> tuple[str, str]:
    """A prompt's end and a reply to it."""
    prompt, text = rng.choice(PROMPTS), ""
    shape = rng.randrange(4)
    if shape == 0:
        prompt, text = OPEN, prose(rng) + "<channel|>"
    elif shape == 1 and "channel" not in prompt:
        text = "<|channel>thought\n" + rng.choice(["", prose(rng, 20), prose(rng)]) + rng.choice(["", "\n"]) + "<channel|>"
    calls = rng.choice([0, 0, 1, 1, 2, 4])
    if not calls or rng.random() < 0.4:
        text += prose(rng, 15).removeprefix("call:")  # there, it would be read as a call that lost its marker
    for _ in range(calls):
        text += "<|tool_call>call:" + rng.choice(NAMES) + arguments(rng) + "<tool_call|>"
    end = ["<|tool_response>", ""] if calls else ["<turn|>", "<eos>", ""]
    return prompt, text + rng.choice(end)


def main(path: str) -> None:
    """Write the file."""
    if not __version__.startswith("5.24"):
        raise SystemExit(f"transformers 5.24 is wanted, this is {__version__}")
    rng, rows = random.Random(4), dict[tuple[str, str], dict[str, Any]]()
    while len(rows) < 500:
        prompt, text = reply(rng)
        rows[prompt, text] = parse_response(text, TEMPLATE, prefix=prompt)
    lines = [json.dumps({"prefix": p, "text": t, "message": m}, ensure_ascii=False) + "\n" for (p, t), m in rows.items()]
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write("".join(lines).encode())


if __name__ == "__main__":
    main(sys.argv[1])
