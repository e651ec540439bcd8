"""A tokenizer that needs no files: UTF-8 bytes, two control tokens, and a ChatML template with tools."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

from tau2rl.chat.tokenizers import REPLACEMENT, ChatDict

CONTROL = {"<|im_start|>": 256, "<|im_end|>": 257}
_CONTROL_TEXT = {number: text for text, number in CONTROL.items()}
_SPLIT = re.compile("(" + "|".join(map(re.escape, CONTROL)) + ")")

# Writes what the Qwen3-Instruct-2507 checkpoints read: tools in the system message, calls as `<tool_call>` blocks, the
# results of one turn together in one user message. A Hugging Face tokenizer may carry it as its `chat_template`.
CHATML_TEMPLATE = """\
{%- macro turn(role, text) -%}
<|im_start|>{{ role }}
{{ text }}<|im_end|>
{% endmacro -%}
{%- set system = messages[0].content if messages and messages[0].role == "system" else "" -%}
{%- if tools -%}
<|im_start|>system
{{ system ~ "\n\n" if system else "" }}# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>{% for tool in tools %}{{ "\n" ~ tool | tojson }}{% endfor %}{{ "\n" }}</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% elif system -%}
{{ turn("system", system) }}
{%- endif -%}
{%- for message in messages -%}
{%- set text = message.content or "" -%}
{%- if message.role == "assistant" -%}
<|im_start|>assistant
{{ text }}
{%- for call in message.tool_calls or [] -%}
{%- set arguments = call.function.arguments -%}
{{ "\n" if text or not loop.first else "" }}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ arguments if arguments is string else arguments | tojson }}}
</tool_call>
{%- endfor -%}
<|im_end|>
{% elif message.role == "tool" -%}
{{ "<|im_start|>user" if loop.first or loop.previtem.role != "tool" else "" }}
<tool_response>
{{ text }}
</tool_response>
{%- if loop.last or loop.nextitem.role != "tool" -%}
<|im_end|>
{% endif -%}
{%- elif not (loop.first and message.role == "system") -%}
{{ turn(message.role, text) }}
{%- endif -%}
{%- endfor -%}
{{ "<|im_start|>assistant\n" if add_generation_prompt else "" }}"""


class ByteTokenizer:
    """Ids 0..255 are bytes, 256 is `<|im_start|>`, 257 is `<|im_end|>`.

    >>> ByteTokenizer().encode("hé<|im_end|>")
    [104, 195, 169, 257]
    >>> ByteTokenizer().decode([104, 195, 257, -1])
    'h\ufffd<|im_end|>\ufffd'
    """

    name = "bytes"
    vocab_size = 258
    end_of_turn_ids: tuple[int, ...] = (CONTROL["<|im_end|>"],)
    control_ids = frozenset(CONTROL.values())

    def encode(self, text: str) -> list[int]:
        """Token ids of the text; see `Tokenizer.encode`."""
        ids: list[int] = []
        for part in _SPLIT.split(text):
            ids += [CONTROL[part]] if part in CONTROL else part.encode("utf-8", "replace")
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of any ids; see `Tokenizer.decode`."""
        return "".join(
            bytes(run).decode("utf-8", "replace") if is_byte else "".join(_CONTROL_TEXT.get(i, REPLACEMENT) for i in run)
            for is_byte, run in groupby(token_ids, key=lambda i: 0 <= i <= 255)
        )

    def render(
        self, messages: Sequence[ChatDict], tools: Sequence[Mapping[str, Any]] | None, *, add_generation_prompt: bool
    ) -> str:
        """The conversation in ChatML; see `Tokenizer.render`."""
        return _template().render(messages=messages, tools=tools, add_generation_prompt=add_generation_prompt)


@lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment

    # As transformers sets up its own templates, so that both read this one alike.
    environment: Any = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["tojson"] = _json
    return environment.from_string(CHATML_TEMPLATE)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
