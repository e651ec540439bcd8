"""Text <-> token ids, and a checkpoint's chat template. Nothing here knows an action or a protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, cast

from tau2rl.errors import UserError

ChatDict = dict[str, Any]  # one message as chat templates read it: {"role", "content"[, "tool_calls"][, "tool_call_id"]}
REPLACEMENT = "\ufffd"  # stands for whatever is not text: broken UTF-8, ids outside the vocabulary


class Tokenizer(Protocol):
    """What a chat protocol needs of a tokenizer."""

    @property
    def name(self) -> str:
        """How a message for people names it."""
        ...

    @property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """Ids that end a turn wherever they are sampled, the checkpoint's own end of sequence among them."""
        ...

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that structure a conversation and are never part of a text (`<|im_start|>`, `<|im_end|>`)."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of the text: control tokens written in it are recognised, none is added."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of any ids whatever; control tokens are kept, what is not text becomes U+FFFD."""
        ...

    def render(
        self, messages: Sequence[ChatDict], tools: Sequence[Mapping[str, Any]] | None, *, add_generation_prompt: bool
    ) -> str:
        """The conversation as the chat template writes it. Raises what the template raises."""
        ...


class HFTokenizer:
    """A Hugging Face tokenizer with its chat template: `HFTokenizer("checkpoints/Qwen3-4B-Instruct-2507")`."""

    def __init__(self, path: str) -> None:
        """Load it from a directory or by its name. Raises UserError: not installed, not found, without a chat template."""
        try:
            transformers: Any = import_module("transformers")  # untyped, and seconds to import
        except ImportError:
            raise UserError(
                "a checkpoint's tokenizer needs `transformers`", hint="pip install -e '.[tokenizers]' in the clone of tau2rl"
            ) from None
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"cannot load a tokenizer from `{path}`: {reason}",
                hint="give the checkpoint's directory (the one with tokenizer.json), or `bytes` for the built-in tokenizer",
            ) from None
        if not self._tokenizer.chat_template:
            raise UserError(
                f"the tokenizer `{path}` has no chat template",
                hint="an instruction-tuned checkpoint brings one; add `chat_template.jinja` beside tokenizer.json",
            )
        self.name = path
        added: dict[int, Any] = self._tokenizer.added_tokens_decoder
        eos: int | None = self._tokenizer.eos_token_id
        ends = ([] if eos is None else [eos]) + _generation_ends(Path(path))
        self.end_of_turn_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))
        self.control_ids = frozenset({i for i, token in added.items() if token.special} | set(self.end_of_turn_ids))
        self._size = len(self._tokenizer)
        self._encode = _encoder(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of the text; see `Tokenizer.encode`."""
        # A lone surrogate (from a JSON escape) is a str that no tokenizer takes.
        return self._encode(text.encode("utf-8", "replace").decode("utf-8"))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of any ids; see `Tokenizer.decode`."""
        ids = list(token_ids)
        if ids and min(ids) >= 0 and max(ids) < self._size:
            return self._text(ids)
        # The library skips an id past its vocabulary and fails on a negative one.
        return "".join(
            self._text(list(run)) if known else REPLACEMENT * len(list(run))
            for known, run in groupby(ids, key=lambda i: 0 <= i < self._size)
        )

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def render(
        self, messages: Sequence[ChatDict], tools: Sequence[Mapping[str, Any]] | None, *, add_generation_prompt: bool
    ) -> str:
        """The conversation as the checkpoint's template writes it; see `Tokenizer.render`."""
        text = self._tokenizer.apply_chat_template(
            list(messages), tools=list(tools) if tools else None, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return str(text)


def _encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """Text -> ids, without the offsets of each token, which nobody reads and which cost a quarter of the time."""
    if not getattr(tokenizer, "is_fast", False):
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False))
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return lambda text: backend.encode_batch_fast([text], add_special_tokens=False)[0].ids


def _generation_ends(directory: Path) -> list[int]:
    """The end-of-sequence ids that a server reads from `generation_config.json` beside the tokenizer."""
    try:
        found = json.loads((directory / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return []
    ids = cast("list[Any]", found) if isinstance(found, list) else [found]
    return [i for i in ids if isinstance(i, int)]


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that `chat.tokenizer` names: `bytes`, or a checkpoint's directory or name. Raises UserError."""
    if name == "bytes":
        from tau2rl.chat.byte_tokenizer import ByteTokenizer

        return ByteTokenizer()
    return HFTokenizer(name)
