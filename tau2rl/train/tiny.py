"""A model from nothing: a Qwen3 small enough for a CPU, with random weights, and a tokenizer learned from the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from tau2rl.chat.template import chat_dicts
from tau2rl.config import ShapeConfig
from tau2rl.data.rows import BadRow, read_row
from tau2rl.errors import UserError
from tau2rl.train.model import NAMED, publish, save, unpublished

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

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


TOKENIZER_ROWS = 500  # conversations that a tokenizer is made from; more of the same kind add no merges
MAX_POSITIONS, ROPE_THETA = 4096, 10_000.0


def create(
    shape: ShapeConfig,
    *,
    vocab_size: int,
    seed: int,
    eos_token_id: int,
    pad_token_id: int,
    kv_heads: int | None = None,
    embedding_std: float = 0.1,
) -> PreTrainedModel:
    """A randomly initialized Qwen3 (tied embeddings, fp32), the same for the same arguments. `kv_heads`: as many as heads.

    `vocab_size` is that of the tokenizer, which may have found less to merge than `shape.vocab_size` allows.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=kv_heads or shape.heads,
        head_dim=shape.head_dim,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        bos_token_id=None,
        use_cache=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
        with torch.no_grad():
            nn.init.normal_(model.model.embed_tokens.weight, std=embedding_std)
            if shape.copy_gain:
                _make_copying_easy(model, shape)
    return cast("PreTrainedModel", model)


def _make_copying_easy(model: nn.Module, shape: ShapeConfig) -> None:
    """Start attention as a weak copier: what a head reads from a token it writes back as that token.

    With tied embeddings an output projection that is the transpose of the value projection sends the attended token's
    embedding to its own logit. A plain start has to find that pairing first: at this size it takes ten times the steps.
    """
    for layer in model.model.layers:  # pyright: ignore[reportAttributeAccessIssue, reportGeneralTypeIssues]
        value = layer.self_attn.v_proj.weight  # [kv_heads * head_dim, hidden]
        nn.init.orthogonal_(value)
        groups = layer.self_attn.num_key_value_groups
        heads = value.view(-1, shape.head_dim, shape.hidden).repeat_interleave(groups, dim=0).reshape(-1, shape.hidden)
        layer.self_attn.o_proj.weight.copy_(shape.copy_gain * heads.T)


def create_tiny(rows: Iterable[tuple[str, Mapping[str, Any]]], shape: ShapeConfig, folder: Path, *, seed: int) -> None:
    """Write a randomly initialized model and a tokenizer made from the first rows: the same files for the same rows and seed."""
    faults: list[str] = []
    texts = list(islice(render_rows(rows, faults), TOKENIZER_ROWS))
    if not texts:
        found = f": {'; '.join(faults[:NAMED])}{'; ...' if len(faults) > NAMED else ''}" if faults else ""
        raise UserError(f"no row to make a tokenizer from{found}", hint="`data.files` names the rows")
    tokenizer = train_tokenizer(texts, vocab_size=shape.vocab_size)
    model = create(
        shape,
        vocab_size=len(tokenizer),
        seed=seed,
        eos_token_id=_id(tokenizer.eos_token_id),
        pad_token_id=_id(tokenizer.pad_token_id),
    )
    draft = unpublished(folder)
    save(model, draft)
    save_tokenizer(tokenizer, draft)
    publish(draft, folder)


def render_rows(rows: Iterable[tuple[str, Mapping[str, Any]]], faults: list[str]) -> Iterable[str]:
    """The text of each row that can be read, as the tiny model's chat template writes it; what is wrong with others: `faults`."""
    from transformers.utils.chat_template_utils import render_jinja_template

    for name, data in rows:
        try:
            row = read_row(data, name=name)
        except BadRow as fault:  # named in the report, by whoever encodes the rows
            faults.append(f"{name}: {fault}")
            continue
        tools: Sequence[Any] = row.tools
        found: Any = render_jinja_template(
            conversations=[chat_dicts(row.messages)], tools=list(tools) or None, chat_template=CHAT_TEMPLATE
        )
        yield str(found[0][0])


def _id(token: Any) -> int:
    assert isinstance(token, int)  # the tokenizer that we train has one
    return token
