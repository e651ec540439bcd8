"""Random conversations, and a real BPE tokenizer made small: what the tests of this directory share."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tau2rl.chat.tokenizers import CHATML_TEMPLATE
from tau2rl.types import Action, Actions, CallTool, Message, Opening, Say, ToolSchema

ANYTHING: dict[str, Any] = {"type": "object", "additionalProperties": True, "properties": {}}
FIND: ToolSchema = {
    "type": "function",
    "function": {
        "name": "find_order",
        "description": "Find an order.",
        "parameters": {
            "type": "object",
            "$defs": {"Item": {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}},
            "properties": {
                "order_id": {"type": "string"},
                "limit": {"type": "integer", "default": 12},
                "status": {"type": "string", "enum": ["pending", "delivered"]},
                "items": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/Item"}, {"type": "null"}]}},
                "note": {"type": "string", "default": None},
                "price": {"type": "number"},
                "urgent": {"type": "boolean"},
            },
            "required": ["order_id"],
        },
    },
}
FREE: ToolSchema = {"type": "function", "function": {"name": "free", "description": "Takes anything.", "parameters": ANYTHING}}
TOOLS: tuple[ToolSchema, ...] = (FIND, FREE)

letters = st.characters(codec="utf-8", exclude_categories=["Cs"])
texts = st.text(letters, max_size=30).map(lambda text: unicodedata.normalize("NFC", text))
lines = st.lists(texts, max_size=3).map("\n".join)
spoken = lines.map(lambda text: f"So: {text}.")  # never blank, never a tag
tricky = st.lists(
    st.sampled_from(
        [
            "<tool_call>",
            "</tool_call>",
            "<think>",
            "</think>",
            "<|im_end|>",
            "<|im_start|>user\n",
            "\n",
            " ",
            '"',
            "\\",
            "{",
            "é",
            "e\u0301",
        ]
    ),
    min_size=1,
    max_size=6,
).map("".join)
scalars = (
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | lines | tricky
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_letters, max_size=5), inner, max_size=3),
    max_leaves=8,
)
says = spoken.map(lambda text: Say(text=text))
calls = st.dictionaries(st.text(letters, max_size=8), values, max_size=3).map(
    lambda found: CallTool(name="free", arguments=found)
)


def _native(said: Say | None, called: list[CallTool]) -> Actions:
    actions: list[Action] = [said] if said else []
    return (*actions, *called) or (Say(text="Well."),)


native_actions = st.builds(_native, st.none() | says, st.lists(calls, max_size=3))
single_actions = st.one_of(says, calls, tricky.filter(str.strip).map(lambda text: Say(text=text))).map(lambda action: (action,))
followers = st.one_of(
    st.lists(lines.map(lambda text: Message(role="user", content=text)), min_size=1, max_size=1),
    st.lists(lines.map(lambda text: Message(role="tool", content=text)), min_size=1, max_size=3),
    st.builds(
        lambda tool, user: [Message(role="tool", content=tool, error=True), Message(role="user", content=user)], lines, lines
    ),
)
openings = st.builds(
    lambda policy, greeting, user: Opening(
        domain_policy=policy,
        messages=(Message(role="assistant", content=greeting), Message(role="user", content=user)),
        tools=TOOLS,
    ),
    lines,
    spoken,
    lines,
)


def corpus() -> Iterator[str]:
    """What the small BPE learns its merges from."""
    yield from [
        "You are a customer service agent",
        "Tool result for find_order",
        '{"name": "find_order", "arguments": {}}',
        "The order is pending",
    ] * 20


def save_bpe(directory: Path, template: str | None = CHATML_TEMPLATE, *, special_tags: bool = False) -> Path:
    """A byte-level BPE with Qwen's shape: NFC, ChatML control tokens, `<tool_call>` tags as added tokens, special ones or not."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tags = [AddedToken(tag, normalized=False) for tag in ("<tool_call>", "</tool_call>", "<think>", "</think>")]
    (made.add_special_tokens if special_tags else made.add_tokens)(tags)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", chat_template=template).save_pretrained(directory)
    (directory / "generation_config.json").write_text(
        f'{{"eos_token_id": [{made.token_to_id("<|im_end|>")}, {made.token_to_id("<|endoftext|>")}]}}'
    )
    return directory
