"""Small chat templates that write as each family does, and how a faultless model of it writes its turns.

A turn is written here by hand, not by the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import HFTokenizer
from tau2rl.types import Actions, CallTool, Say, Think, Thinking

LAST_USER = (
    "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}"
    "{%- endif -%}{%- endfor -%}"
)
# ChatML around a thought and calls: THOUGHT and CALL are what a family has of its own.
CHATML = (
    LAST_USER
    + """{%- for m in messages -%}
{%- if m.role == 'tool' -%}
{{ '<|im_start|>user' if messages[loop.index0 - 1].role != 'tool' else '' }}
{{- '\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response>' }}
{{- '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1].role != 'tool' else '' }}
{%- else -%}
{{ '<|im_start|>' ~ m.role ~ '\\n' }}
{%- if loop.first and tools -%}{{ tools | tojson }}{{ '\\n' }}{%- endif -%}
{%- if m.role == 'assistant' -%}THOUGHT{%- endif -%}
{{ m.content or '' }}
{%- for c in m.tool_calls or [] -%}{{ 'BREAK' if m.content or not loop.first else '' }}CALL{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' ~ 'PROMPT' if add_generation_prompt else '' }}"""
)
JSON_CALL = """<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>"""
ELEMENT_CALL = """<tool_call>
<function={{ c.function.name }}>
{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>
{{ v if v is string else VALUE }}
</parameter>
{% endfor %}</function>
</tool_call>"""
OPENED = "' ~ ('<think>\\n' if enable_thinking else '<think>\\n\\n</think>\\n\\n') ~ '"
DROPPED = """{%- set thought = m.reasoning_content or '' -%}
{%- if preserve_thinking or loop.index0 > ns.last -%}{{ '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' }}{%- endif -%}"""
HOLLOW = """{%- if m.reasoning_content and (not truncate_history_thinking or loop.index0 > ns.last) -%}
{{ '<think>\\n' ~ m.reasoning_content ~ '\\n</think>\\n' }}{%- else -%}{{ '<think></think>' }}{%- endif -%}"""


def chatml(*, thought: str = "", call: str, prompt: str = "", between: str = "\\n") -> str:
    made = CHATML.replace("THOUGHT", thought).replace("BREAK", between).replace("CALL", call)
    return made.replace("PROMPT", prompt)


LLAMA = """{{- '<|begin_of_text|>' -}}
{%- for m in messages -%}
{%- set role = 'ipython' if m.role == 'tool' else m.role -%}
{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' }}
{%- if loop.first and tools -%}{{ tools | tojson }}{{ '\\n\\n' }}{%- endif -%}
{%- if m.tool_calls -%}
{%- if m.tool_calls | length != 1 -%}{{ raise_exception('one call a turn') }}{%- endif -%}
{%- set f = m.tool_calls[0].function -%}
{{ '{"name": "' ~ f.name ~ '", "parameters": ' ~ (f.arguments | tojson) ~ '}' }}
{%- else -%}{{ m.content | tojson if m.role == 'tool' else m.content }}{%- endif -%}
{{ '<|eot_id|>' }}
{%- endfor -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' if add_generation_prompt else '' }}"""
GEMMA = (
    """{%- macro value(v) -%}
{%- if v is none -%}null{%- elif v is string -%}{{ '<|"|>' ~ v ~ '<|"|>' }}
{%- elif v is boolean -%}{{ 'true' if v else 'false' }}
{%- elif v is mapping -%}{{ '{' }}
{%- for k, x in v | dictsort -%}{{ ',' if not loop.first }}{{ k }}:{{ value(x) }}{%- endfor -%}
{{ '}' }}
{%- elif v is sequence -%}{{ '[' }}{%- for x in v -%}{{ ',' if not loop.first }}{{ value(x) }}{%- endfor -%}{{ ']' }}
{%- else -%}{{ v }}{%- endif -%}
{%- endmacro -%}"""
    + LAST_USER
    + """{{- '<bos>' -}}
{%- set st = namespace(open=false) -%}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}
{%- set names = namespace(of={}) -%}
{%- for x in messages -%}{%- for c in x.tool_calls or [] -%}
{%- set names.of = dict(names.of, **{c.id: c.function.name}) -%}{%- endfor -%}{%- endfor -%}
{{ '<|tool_response>' if messages[loop.index0 - 1].role == 'tool' else '' }}
{{- 'response:' ~ names.of.get(m.tool_call_id, 'unknown') ~ '{value:' ~ value(m.content) ~ '}<tool_response|>' }}
{%- set st.open = true -%}
{%- else -%}
{%- if not (m.role == 'assistant' and st.open) -%}
{{ '<|turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\\n' }}{%- endif -%}
{%- set st.open = false -%}
{%- if loop.first and tools -%}{{ '<|tool>' ~ (tools | tojson) ~ '<tool|>' }}{%- endif -%}
{%- if m.reasoning_content and loop.index0 > ns.last -%}
{{ '<|channel>thought\\n' ~ m.reasoning_content ~ '\\n<channel|>' }}{%- endif -%}
{%- for c in m.tool_calls or [] -%}
{{ '<|tool_call>call:' ~ c.function.name ~ '{' }}
{%- for k, v in c.function.arguments | dictsort -%}{{ ',' if not loop.first }}{{ k }}:{{ value(v) }}{%- endfor -%}
{{ '}<tool_call|>' }}{%- endfor -%}
{%- if m.tool_calls -%}{{ '<|tool_response>' }}{%- set st.open = true -%}
{%- else -%}{{ m.content ~ '<turn|>\\n' }}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{{ '<|turn>model\\n' if add_generation_prompt and not st.open else '' }}"""
)
HARMONY = """{{- '<|start|>system<|message|>Today: ' ~ strftime_now('%Y-%m-%d') ~ '<|end|>' -}}
{%- set last = namespace(name='') -%}
{%- for m in messages -%}
{%- if m.role == 'system' -%}
{{ '<|start|>developer<|message|>' ~ m.content ~ (tools | tojson if tools else '') ~ '<|end|>' }}
{%- elif m.role == 'user' -%}{{ '<|start|>user<|message|>' ~ m.content ~ '<|end|>' }}
{%- elif m.role == 'tool' -%}
{{ '<|start|>functions.' ~ last.name ~ ' to=assistant<|channel|>commentary<|message|>' ~ (m.content | tojson) ~ '<|end|>' }}
{%- elif m.tool_calls -%}
{%- set later = namespace(final=false) -%}
{%- for x in messages[loop.index:] -%}{%- if x.role == 'assistant' and not x.tool_calls -%}
{%- set later.final = true -%}{%- endif -%}
{%- endfor -%}
{%- set last.name = m.tool_calls[0].function.name -%}
{%- if m.thinking and not later.final -%}
{{ '<|start|>assistant<|channel|>analysis<|message|>' ~ m.thinking ~ '<|end|>' }}{%- endif -%}
{{ '<|start|>assistant to=functions.' ~ last.name ~ '<|channel|>commentary json<|message|>' }}
{{- (m.tool_calls[0].function.arguments | tojson) ~ '<|call|>' }}
{%- else -%}
{%- set ends = loop.last and not add_generation_prompt -%}
{%- if m.thinking and ends -%}{{ '<|start|>assistant<|channel|>analysis<|message|>' ~ m.thinking ~ '<|end|>' }}{%- endif -%}
{{ '<|start|>assistant<|channel|>final<|message|>' ~ m.content ~ ('<|return|>' if ends else '<|end|>') }}
{%- endif -%}
{%- endfor -%}
{{ '<|start|>assistant' if add_generation_prompt else '' }}"""


def _json(call: CallTool) -> str:
    return f'<tool_call>\n{{"name": "{call.name}", "arguments": {json.dumps(call.arguments)}}}\n</tool_call>'


def _elements(call: CallTool) -> str:
    values = "".join(
        f"<parameter={k}>\n{v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}\n</parameter>\n"
        for k, v in call.arguments.items()
    )
    return f"<tool_call>\n<function={call.name}>\n{values}</function>\n</tool_call>"


def _bare(call: CallTool) -> str:
    return f'{{"name": "{call.name}", "parameters": {json.dumps(call.arguments)}}}'


def _gemma_value(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, list):
        return f"[{','.join(map(_gemma_value, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_gemma_value(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def _gemma(call: CallTool) -> str:
    return f"<|tool_call>call:{call.name}{_gemma_value(call.arguments)}<tool_call|>"


def _harmony(call: CallTool) -> str:
    return f" to=functions.{call.name}<|channel|>commentary json<|message|>{json.dumps(call.arguments)}"


@dataclass(frozen=True)
class Model:
    """A family as a test sees it."""

    template: str
    reads_as: str  # the name that the proof must find
    call: Callable[[CallTool], str]
    end: str = "<|im_end|>"
    call_end: str = "<|im_end|>"
    thinks: tuple[Thinking, ...] = ("off",)
    thought: Callable[[str], str] = lambda text: f"<think>\n{text}\n</think>\n\n"
    opened: str = ""  # what the prompt has of it
    said: str = "{}"
    dates: date | None = None
    control: tuple[str, ...] = field(default=("<|im_start|>", "<|im_end|>"))

    def turn(self, actions: Actions) -> str:
        """A turn as a faultless model samples it, from its thought to its end token."""
        thought = "".join(self.thought(a.text) for a in actions if isinstance(a, Think)).removeprefix(self.opened)
        said = [self.said.format(a.text) for a in actions if isinstance(a, Say)]
        calls = [self.call(a) for a in actions if isinstance(a, CallTool)]
        return thought + "\n".join([*said, *calls]) + (self.call_end if calls else self.end)

    def save(self, directory: Path) -> Path:
        """A tokenizer of bytes with this family's control tokens and template."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
        made.add_special_tokens(list(self.control))
        made.add_tokens([AddedToken(t, normalized=False) for t in ("<tool_call>", "</tool_call>", "<think>", "</think>")])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=made, eos_token=self.end, bos_token=self.control[0], chat_template=self.template
        )
        tokenizer.save_pretrained(directory)
        return directory

    def codec(self, directory: Path, thinking: Thinking) -> NativeCodec:
        """Its codec, over a tokenizer saved before."""
        return NativeCodec(HFTokenizer(str(directory)), thinking=thinking, date=self.dates)


ALL: tuple[Thinking, ...] = ("off", "keep", "per-turn")
LLAMA_CONTROL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")
GEMMA_CONTROL = (
    *("<bos>", "<|turn>", "<turn|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>"),
    *("<tool_response|>", '<|"|>', "<|channel>", "<channel|>"),
)
HARMONY_CONTROL = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>")
MODELS: dict[str, Model] = {
    "qwen3-instruct": Model(chatml(call=JSON_CALL), "hermes", _json),
    "qwen3-hybrid": Model(
        chatml(
            call=JSON_CALL,
            thought="{%- if loop.index0 > ns.last and m.reasoning_content -%}"
            "{{ '<think>\\n' ~ m.reasoning_content ~ '\\n</think>\\n\\n' }}{%- endif -%}",
            prompt="' ~ ('' if enable_thinking else '<think>\\n\\n</think>\\n\\n') ~ '",
        ),
        "hermes",
        _json,
        thinks=ALL,
    ),
    "qwen3-thinking": Model(
        chatml(call=JSON_CALL, thought=DROPPED.replace("preserve_thinking or ", ""), prompt="<think>\\n"),
        "hermes",
        _json,
        thinks=("keep", "per-turn"),
        opened="<think>\n",
    ),
    "qwen3.5": Model(
        chatml(
            call=ELEMENT_CALL.replace("VALUE", "v | tojson"),
            thought=DROPPED.replace("preserve_thinking or ", ""),
            prompt=OPENED,
            between="\\n\\n",
        ),
        "elements",
        _elements,
        thinks=ALL,
        opened="<think>\n",
    ),
    "qwen3.8": Model(
        chatml(call=ELEMENT_CALL.replace("VALUE", "v | tojson"), thought=DROPPED, prompt=OPENED),
        "elements",
        _elements,
        thinks=ALL,
        opened="<think>\n",
    ),
    "nemotron-3": Model(
        chatml(
            call=ELEMENT_CALL.replace("VALUE", "(v | tojson if v is mapping or v is sequence else v | string)") + "{{ '\\n' }}",
            thought=HOLLOW,
            prompt="' ~ ('<think>\\n' if enable_thinking else '<think></think>') ~ '",
        ),
        "elements",
        _elements,
        thinks=ALL,
        thought=lambda text: f"<think>\n{text}\n</think>\n",
        opened="<think>\n",
    ),
    "llama-3": Model(LLAMA, "bare-json", _bare, "<|eot_id|>", "<|eot_id|>", control=LLAMA_CONTROL),
    "bare-several": Model(
        chatml(call='{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}'), "bare-json", _bare
    ),
    "gemma-4": Model(
        GEMMA,
        "gemma",
        _gemma,
        "<turn|>",
        "<|tool_response>",
        thinks=ALL,
        thought=lambda text: f"<|channel>thought\n{text}\n<channel|>",
        control=GEMMA_CONTROL,
    ),
    "gpt-oss": Model(
        HARMONY,
        "harmony",
        _harmony,
        "<|return|>",
        "<|call|>",
        thinks=("per-turn",),
        thought=lambda text: f"<|channel|>analysis<|message|>{text}<|end|><|start|>assistant",
        said="<|channel|>final<|message|>{}",
        dates=date(2026, 1, 31),
        control=HARMONY_CONTROL,
    ),
}
PAIRS = [(name, thinking) for name, model in MODELS.items() for thinking in model.thinks]
