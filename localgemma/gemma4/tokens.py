"""Control tokens of Gemma 4 by name, and their ids (release/tokenizer_config.json and llama.cpp's ggml-vocab-gemma-4).

Ids below 107 hold for every model of the family, the demo included; the picture tokens of a smaller vocabulary have
other ids, so they are always looked up by name.
"""

from __future__ import annotations

BOS = "<bos>"
EOS = "<eos>"
TOOL, TOOL_END = "<|tool>", "<tool|>"
CALL, CALL_END = "<|tool_call>", "<tool_call|>"
RESPONSE, RESPONSE_END = "<|tool_response>", "<tool_response|>"
QUOTE = '<|"|>'
THINK = "<|think|>"
CHANNEL, CHANNEL_END = "<|channel>", "<channel|>"
TURN, TURN_END = "<|turn>", "<turn|>"
IMAGE_BEGIN, IMAGE_END = "<|image>", "<image|>"
IMAGE, AUDIO, VIDEO = "<|image|>", "<|audio|>", "<|video|>"

IDS: dict[str, int] = {
    "<pad>": 0, EOS: 1, BOS: 2, "<unk>": 3,
    TOOL: 46, TOOL_END: 47, CALL: 48, CALL_END: 49, RESPONSE: 50, RESPONSE_END: 51, QUOTE: 52,
    THINK: 98, CHANNEL: 100, CHANNEL_END: 101, TURN: 105, TURN_END: 106,
}  # fmt: skip

# What the model may write and the parser acts on: llama.cpp types these USER_DEFINED.
MARKERS = (CALL, CALL_END, RESPONSE, RESPONSE_END, QUOTE, CHANNEL, CHANNEL_END)
STOPS = (EOS, TURN_END, RESPONSE)  # ids 1, 106, 50: generation_config.json eos_token_id
EVERY_CONTROL = (
    "<pad>", EOS, BOS, "<unk>", TOOL, TOOL_END, CALL, CALL_END, RESPONSE, RESPONSE_END, QUOTE, THINK,
    CHANNEL, CHANNEL_END, TURN, TURN_END, IMAGE_BEGIN, IMAGE_END, IMAGE, "<|audio>", "<audio|>", AUDIO, VIDEO,
)  # fmt: skip
