"""Random conversations and what transformers' renderer makes of them with Google's chat template.

    python tests/reference/make_prompts.py chat_template.jinja tests/data/prompts.jsonl.gz

Needs transformers and jinja2. Every line is {"input": keyword arguments of render, "expected": text}. Two things are
prepared before the template sees them, as localgemma does: arguments given as JSON strings are parsed, and tool results
that are mappings are kept from looking like sequences (the template would otherwise iterate over their keys and fail).
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import _compile_jinja_template

COUNT = 1000
MARKERS = ["<bos>", "<eos>", "<|turn>", "<turn|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
           "<tool_response|>", '<|"|>', "<|think|>", "<|channel>", "<channel|>", "<|channel>thought\n", "<|image|>",
           "<|image>", "<image|>", "<|video|>", "<|audio|>", "<|turn>model\n"]  # fmt: skip
WORDS = ["Hello", "weather", "naïve", "日本語", "🙂👩‍👩‍👧", "مرحبا", "e\u0301", "{", "}", "a,b", '"', "'", "\\n", "<b>", 
         "&amp;", "{{ x }}", "{% if %}", "0", "None", "İ", "ß"]  # fmt: skip
SPACES = [" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2003", "\u200b", "\x1c", "\x85", "", " \n "]
KEYS = ["city", "City", "b", "A", "a", "Zeta", "zeta", "ß", "type", "enum", "items", "description", "properties", "required",
        "nullable", "value", "<|turn>", "key with space", "Ünits", "format"]  # fmt: skip


class Opaque(dict):  # type: ignore[type-arg]
    """A mapping that Jinja does not take for a sequence."""

    def __len__(self) -> int:
        raise TypeError

    def __bool__(self) -> bool:
        return True


class Maker:
    """Random pieces of conversations."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def text(self) -> str:
        pick = self.random.choice
        words = [pick(MARKERS) if self.chance(0.15) else pick(WORDS) for _ in range(pick([0, 1, 1, 2, 3, 5]))]
        body = pick(["", *SPACES]).join(word + pick(SPACES) for word in words)
        return pick(["", "", *SPACES]) + body + pick(["", "", *SPACES])

    def value(self, depth: int = 0) -> Any:
        kind = self.random.randrange(11 if depth < 3 else 7)
        if kind < 7:
            simple = [None, True, False, self.random.randrange(-5, 10**12), self.random.choice([0.1, -2.5, 1e30, 1e-7, 3.0])]
            return [*simple, self.text(), self.text()][kind]
        size = self.random.randrange(4)
        if kind < 9:
            return [self.value(depth + 1) for _ in range(size)]
        return self.mapping(depth + 1, size)

    def mapping(self, depth: int = 0, size: int | None = None) -> dict[str, Any]:
        keys = self.random.sample(KEYS, self.random.randrange(4) if size is None else size)
        return {key: self.value(depth + 1) for key in keys}

    def schema(self, depth: int = 0) -> Any:
        pick = self.random.choice
        if self.chance(0.03):
            return pick([None, True, {}, "string", []])
        kinds = ["string", "STRING", "integer", "number", "boolean", "array", "object", "null", ["string", "null"], None]
        kind = pick(kinds if depth < 3 else kinds[:5])
        out: dict[str, Any] = {} if self.chance(0.05) else {"type": kind}
        if self.chance(0.6):
            out["description"] = pick([self.text(), self.text(), "", None])
        if self.chance(0.3):
            out["enum"] = pick([[self.text() for _ in range(3)], ["a", 1, None, True], [], [1, 2]])
        if self.chance(0.2):
            out["nullable"] = pick([True, False])
        if self.chance(0.15):
            out[pick(["default", "format", "minimum", "additionalProperties"])] = pick([self.value(2), self.schema(4)])
        if depth < 4 and (kind == "array" or self.chance(0.05)):
            out["items"] = pick([self.items(depth), self.items(depth), {}, True, None])
        if kind == "object" and self.chance(0.75) and depth < 4:
            out["properties"] = pick([self.properties(depth), self.properties(depth), {}, None])
        if kind == "object" and self.chance(0.5):
            out["required"] = pick([self.random.sample(KEYS, 2), [], ["x"], None])
        if kind == "object" and "properties" not in out and self.chance(0.5):
            out[pick(["city", "Beta", "format"])] = self.schema(depth + 1)
        items = list(out.items())
        self.random.shuffle(items)
        return dict(items)

    def items(self, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {"type": self.random.choice(["string", "object", ["string", "null"], None, "array"])}
        extra = {"properties": self.properties(depth), "required": [self.text()], "enum": ["a", "b"], "nullable": True,
                 "description": self.text(), "default": self.mapping(2), "items": {"type": "string"}}  # fmt: skip
        out.update({key: item for key, item in extra.items() if self.chance(0.35)})
        if self.chance(0.05):
            out["properties"] = "none"
        return out

    def properties(self, depth: int) -> dict[str, Any]:
        return {key: self.schema(depth + 1) for key in self.random.sample(KEYS, self.random.randrange(4))}

    def tool(self) -> dict[str, Any]:
        function: dict[str, Any] = {"name": self.name(), "description": self.text()}
        if self.chance(0.05):
            function["description"] = None
        if self.chance(0.03):
            del function["description"]
        if self.chance(0.85):
            function["parameters"] = {"type": "object", "properties": self.properties(0), "required": [self.text()]}
            for key in ("type", "properties", "required"):
                if self.chance(0.1):
                    function["parameters"][key] = [] if key == "required" else None
        if self.chance(0.2):
            response = {"type": self.random.choice(["object", "string"]), "description": self.text(), "properties": {}}
            function["response"] = self.random.choice([response, {}, {"type": "OBJECT"}])
        return {"type": "function", "function": function}

    def name(self) -> str:
        return self.random.choice(["get_weather", "search", "a.b-c", "naïve", "x<|turn>", "call:y{", self.text()])

    def media(self) -> dict[str, Any]:
        return self.random.choice([
            {"type": "image"}, {"type": "image", "url": "a.png"}, {"type": "image_url", "image_url": {"url": "https://x/y"}},
            {"type": "video", "url": "v.mp4"}, {"type": "audio"}, {"type": "input_audio", "input_audio": {}},
        ])  # fmt: skip

    def parts(self) -> list[dict[str, Any]]:
        out = [
            {"type": "text", "text": self.text()} if self.chance(0.6) else self.media()
            for _ in range(self.random.randrange(5))
        ]
        return [*out, {"type": "unknown", "text": "dropped"}] if self.chance(0.05) else out

    def call(self) -> dict[str, Any]:
        arguments: Any = self.mapping()
        if self.chance(0.3):
            arguments = json.dumps(arguments, ensure_ascii=self.chance(0.5))
        elif self.chance(0.1):
            arguments = None
        out: dict[str, Any] = {"type": "function", "function": {"name": self.name(), "arguments": arguments}}
        if self.chance(0.7):
            out["id"] = f"call_{self.random.randrange(4)}"
        return out

    def result(self) -> dict[str, Any]:
        pick = self.random.choice
        content = pick([self.text(), self.text(), self.mapping(), self.mapping(), self.parts(), None, 5, 2.5, True, [], {}])
        out: dict[str, Any] = {"role": "tool", "content": content}
        if self.chance(0.7):
            out["tool_call_id"] = f"call_{self.random.randrange(4)}"
        if self.chance(0.5):
            out["name"] = self.name()
        if self.chance(0.03):
            del out["content"]
        return out

    def assistant(self) -> list[dict[str, Any]]:
        pick = self.random.choice
        out: dict[str, Any] = {"role": "model" if self.chance(0.05) else "assistant"}
        if self.chance(0.9):
            out["content"] = pick([self.text(), self.text(), self.thought(), self.parts(), "", None])
        if self.chance(0.4):
            out[pick(["reasoning", "reasoning_content"])] = pick([self.text(), self.text(), "", None])
        results: list[dict[str, Any]] = []
        if self.chance(0.4):
            out["tool_calls"] = [self.call() for _ in range(self.random.randrange(4))]
            results = [self.result() for _ in range(pick([0, 1, 1, 2, 3]))]
        elif self.chance(0.03):
            results = [self.result()]
        if self.chance(0.1):
            response = pick([{"response": self.value()}, {"response": self.mapping()}, {}])
            out["tool_responses"] = [
                {"name": pick([self.name(), "", None]), **response} for _ in range(self.random.randrange(3))
            ]
        return [out, *results]

    def thought(self) -> str:
        return f"{self.text()}<|channel>thought\n{self.text()}<channel|>{self.text()}"

    def conversation(self) -> dict[str, Any]:
        pick = self.random.choice
        messages: list[dict[str, Any]] = []
        if self.chance(0.4):
            texts = [{"type": "text", "text": self.text()} for _ in range(self.random.randrange(3))]
            messages.append({"role": pick(["system", "system", "developer"]), "content": pick([self.text(), texts])})
        for _ in range(pick([0, 1, 1, 2, 2, 3, 4])):
            if self.chance(0.85):
                messages.append({"role": "user", "content": pick([self.text(), self.parts()])})
            for _ in range(pick([0, 1, 1, 1, 2, 3])):
                messages += self.assistant()
            if self.chance(0.04):
                messages.append({"role": pick(["system", "developer"]), "content": self.text()})
        out: dict[str, Any] = {"messages": messages}
        if self.chance(0.35):
            out["tools"] = [self.tool() for _ in range(pick([0, 1, 1, 2]))]
        for key, default in (("enable_thinking", False), ("preserve_thinking", False), ("add_generation_prompt", True)):
            out[key] = pick([True, False]) if key != "add_generation_prompt" else self.chance(0.75) is default
        return out


def prepared(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as the template can read them."""
    messages = copy.deepcopy(messages)
    for message in messages:
        for call in message.get("tool_calls") or ():
            if isinstance(call["function"]["arguments"], str):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        if message["role"] == "tool" and isinstance(message.get("content"), dict) and message["content"]:
            message["content"] = Opaque(message["content"])
    return messages


def expected(template: str, case: dict[str, Any]) -> str:
    """What transformers renders."""
    settings = {key: item for key, item in case.items() if key not in ("messages", "tools")}
    compiled = _compile_jinja_template(template)
    return str(compiled.render(messages=prepared(case["messages"]), tools=case.get("tools"), bos_token="<bos>", **settings))


def main() -> None:
    """Write the file named by the second argument."""
    template = Path(sys.argv[1]).read_text(encoding="utf-8")
    lines = []
    for seed in range(COUNT):
        case = Maker(seed).conversation()
        lines.append(
            json.dumps({"input": case, "expected": expected(template, case)}, ensure_ascii=False, separators=(",", ":"))
        )
    data = "".join(line + "\n" for line in lines).encode()
    Path(sys.argv[2]).write_bytes(gzip.compress(data, 9, mtime=0))
    print(f"{len(lines)} conversations, {len(data):,} bytes")


if __name__ == "__main__":
    main()
