"""A tokenizer for a model that starts from nothing: byte-level BPE over long constant fragments, entities kept apart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Plain added tokens, as in Qwen3: decoding with `skip_special_tokens` keeps them.
MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
# What varies between conversations (a capitalised word, two digits) is a piece of its own, without the blank before it,
# so that a name or an id has the same tokens wherever it stands and can be copied. What lies between such pieces may
# become one token however many words it has: constant text, which is most of a policy and of a tool call, costs little.
PIECES = r"[A-Z][a-z]+|[0-9]{1,2}|[^A-Z0-9]+|[A-Z]"

# Qwen's layout; tools as signatures in place of whole JSON schemas, which a model of this size could not read anyway.
CHAT_TEMPLATE = r"""
{%- macro call(t) -%}
    {%- set f = t.function if t.function is defined else t -%}
    {{- '<tool_call>\n{"name": "' ~ f.name ~ '", "arguments": ' -}}
    {{- (f.arguments if f.arguments is string else f.arguments | tojson) ~ '}\n</tool_call>' -}}
{%- endmacro -%}
{%- if tools or messages[0].role == 'system' -%}
    {{- '<|im_start|>system\n' -}}
    {%- if messages[0].role == 'system' %}{{- messages[0].content -}}{% endif -%}
    {%- if tools -%}
        {{- '\n\n# Tools' -}}
        {%- for tool in tools -%}
            {%- set f = tool.function if tool.function is defined else tool -%}
            {{- '\n' ~ f.name ~ '(' ~ (f.parameters.properties | list | join(', ')) ~ ')' -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endif -%}
{%- for m in messages -%}
    {%- if m.role == 'user' -%}
        {{- '<|im_start|>user\n' ~ m.content ~ '<|im_end|>\n' -}}
    {%- elif m.role == 'assistant' -%}
        {{- '<|im_start|>assistant\n' -}}
        {%- generation -%}
            {{- m.content or '' -}}
            {%- for t in m.tool_calls or [] -%}
                {{- ('' if loop.first and not m.content else '\n') ~ call(t) -}}
            {%- endfor -%}
            {{- '<|im_end|>' -}}
        {%- endgeneration -%}
        {{- '\n' -}}
    {%- elif m.role == 'tool' -%}
        {{- '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' else '' -}}
        {{- '\n<tool_response>\n' ~ m.content ~ '\n</tool_response>' -}}
        {{- '<|im_end|>\n' if loop.last or messages[loop.index0 + 1].role != 'tool' else '' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}"""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Learn the merges from rendered conversations; any other text still has an encoding, byte by byte.

    `vocab_size` counts everything: 256 bytes, the special tokens and the merges. The same texts give the same tokenizer.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKS])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_between_marks(text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write it so that `AutoTokenizer.from_pretrained(folder)` reads it."""
    tokenizer.save_pretrained(str(folder))


def _between_marks(text: str) -> list[str]:
    pieces = [text]
    for mark in SPECIAL + MARKS:
        pieces = [part for piece in pieces for part in piece.split(mark)]
    return [piece for piece in pieces if piece]
