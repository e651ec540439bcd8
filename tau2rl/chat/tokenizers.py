"""Text <-> token ids, and conversations as a chat template writes them.

`HFTokenizer` is a checkpoint's own. `ByteTokenizer` needs no files: UTF-8 bytes, two control tokens, and a ChatML template.
"""

from __future__ import annotations

import json
import re
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import lru_cache
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import SplitResult, urlsplit

from tau2rl.config import ChatConfig, TemplateConfig
from tau2rl.config.extras import part_of
from tau2rl.errors import UserError
from tau2rl.settings import uses_proxy

ChatDict = dict[str, Any]  # one message as chat templates read it: {"role", "content"[, "tool_calls"][, "tool_call_id"]}
PINNED_DATE = "pinned_date"  # among the variables of a rendering: the day that `strftime_now` tells
TURN_TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>")  # part of a turn, also where a tokenizer marks them special
HUB_SECONDS = 3.0  # within which the hub must accept a connection
REPLACEMENT = "\ufffd"  # stands for whatever is not text: broken UTF-8, ids outside the vocabulary


class Tokenizer(Protocol):
    """What a chat protocol needs of a tokenizer."""

    @property
    def name(self) -> str:
        """How a message for people names it."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
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
        self,
        messages: Sequence[ChatDict],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as the chat template writes it, told `variables` besides. Raises what the template raises."""
        ...


class HFTokenizer:
    """A Hugging Face tokenizer with its chat template: `HFTokenizer("checkpoints/Qwen3-4B-Instruct-2507")`."""

    def __init__(self, path: str) -> None:
        """Load it from a directory or by its name. Raises UserError: not installed, not found, without a chat template."""
        try:
            transformers: Any = import_module("transformers")  # untyped, and seconds to import
        except ImportError:
            raise part_of("transformers").refusal("a checkpoint's tokenizer") from None
        here = _refuse_what_is_nowhere(path)  # as it was typed: `./a/b` is a folder, `a/b` may be on the hub
        path = str(Path(path).expanduser())
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                path, trust_remote_code=False, local_files_only=here
            )
        except Exception as error:  # noqa: BLE001 - what files of other types raise is any kind, from `tokenizers` Exception itself
            reason = next(iter(str(error).splitlines()), type(error).__name__)
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
        special = {i for i, token in added.items() if token.special and str(token.content) not in TURN_TAGS}
        self.control_ids = frozenset(special | set(self.end_of_turn_ids))
        self.vocab_size = max(len(self._tokenizer), 1 + max(added, default=-1))  # some leave a gap before what was added
        self._encode = _encoder(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of the text; see `Tokenizer.encode`."""
        # A lone surrogate (from a JSON escape) is a str that no tokenizer takes.
        return self._encode(text.encode("utf-8", "replace").decode("utf-8"))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of any ids; see `Tokenizer.decode`."""
        ids = list(token_ids)
        if ids and min(ids) >= 0 and max(ids) < self.vocab_size:
            return self._text(ids)
        # The library skips an id past its vocabulary and fails on a negative one.
        return "".join(
            self._text(list(run)) if known else REPLACEMENT * len(list(run))
            for known, run in groupby(ids, key=lambda i: 0 <= i < self.vocab_size)
        )

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def render(
        self,
        messages: Sequence[ChatDict],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as the checkpoint's template writes it; see `Tokenizer.render`."""
        text = self._tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **self._told(variables or {}),
        )
        return str(text)

    def _told(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables; in place of a date, the template with that date written out."""
        told = {key: value for key, value in variables.items() if key != PINNED_DATE}
        if PINNED_DATE not in variables:
            return told
        template = self._tokenizer.get_chat_template()
        return {**told, "chat_template": with_date(template, variables[PINNED_DATE])}


@lru_cache(maxsize=8)
def with_date(template: str, today: date) -> str:
    """A chat template whose calls of `strftime_now` are replaced by what they say on a day. Raises UserError for other uses.

    >>> with_date('{{ strftime_now("%Y-%m-%d") }}', date(2026, 1, 31))
    '{{ "2026-01-31" }}'
    """
    pinned = _NOW.sub(lambda found: json.dumps(today.strftime(found[2])), template)
    if "strftime_now" in _ASKED.sub("", pinned):
        raise UserError(
            "the chat template of this checkpoint asks for the date in a way that cannot be pinned",
            hint='a `chat_template.jinja` beside tokenizer.json replaces it: write `strftime_now("%Y-%m-%d")` there, or no date',
        )
    return pinned


_NOW = re.compile(r"""strftime_now\s*\(\s*(["'])(.*?)\1\s*\)""")
_ASKED = re.compile(r"strftime_now\s+is\s+(not\s+)?defined")


def _encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """Text -> ids, without the offsets of each token, which nobody reads and which cost a quarter of the time."""
    if not getattr(tokenizer, "is_fast", False):
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False))
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return lambda text: backend.encode_batch_fast([text], add_special_tokens=False)[0].ids


def _generation_ends(directory: Path) -> list[int]:
    """The end-of-sequence ids that a server reads from `generation_config.json` beside the tokenizer. Raises UserError."""
    file = directory / "generation_config.json"
    if not file.exists():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"cannot read `{file}`: {error}", hint="a server reads from it which tokens end a turn") from None
    ids = cast("list[Any]", found) if isinstance(found, list) else [found]
    return [i for i in ids if isinstance(i, int)]


HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # ORG/NAME, as the hub has it


class LooksUp(UserWarning):
    """A name is asked for on the hub, since no folder has it."""


def _refuse_what_is_nowhere(name: str) -> bool:
    """Whether the files are on this machine; else the hub, which answers, is asked for them. Raises UserError.

    Only what has the form ORG/NAME, and does not begin with a folder of this one, is a name on the hub.
    """
    if Path(name).expanduser().is_dir():
        return True
    hint = "give the checkpoint's directory (the one with tokenizer.json), or `bytes` for the built-in tokenizer"
    if not HUB_NAME.fullmatch(name) or Path(Path(name).parts[0]).is_dir():
        raise UserError(f"no folder `{name}` to load a tokenizer from", hint=hint)
    hub: Any = import_module("huggingface_hub")  # which transformers brings
    if isinstance(hub.try_to_load_from_cache(name, "tokenizer_config.json"), str):
        return True
    endpoint = urlsplit(str(hub.constants.ENDPOINT))
    if hub.constants.is_offline_mode() or not _listens(endpoint):
        why = "is not to be asked" if hub.constants.is_offline_mode() else "does not answer"
        raise UserError(f"no folder `{name}`, nor is it in the hub's cache, and {endpoint.hostname} {why}", hint=hint)
    warnings.warn(f"no folder `{name}` here: looking it up at {endpoint.hostname}", LooksUp, stacklevel=4)
    return False


def _listens(address: SplitResult) -> bool:
    """Whether a server accepts connections; its own client would try for a minute. Behind a proxy nobody here knows."""
    if uses_proxy(address.geturl()):
        return True
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=HUB_SECONDS):
            return True
    except OSError:
        return False


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that `chat.tokenizer` names: `bytes`, or a checkpoint's directory or name. Raises UserError."""
    if name == "bytes":
        return ByteTokenizer()
    return HFTokenizer(name)


def tokenizer_of(config: ChatConfig) -> Tokenizer:
    """The tokenizer of a protocol that cannot do without one. Raises UserError."""
    if not config.tokenizer:
        raise UserError(
            f"chat.protocol `{config.protocol}` needs chat.tokenizer",
            hint="the directory of the checkpoint's tokenizer, or `bytes` for the built-in one",
        )
    return load_tokenizer(config.tokenizer)


def date_of(config: TemplateConfig) -> date | None:
    """The date that templates are told; None: nobody said."""
    return date.fromisoformat(config.date) if config.date else None


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
{%- set asked = namespace(last=-1) -%}
{%- for message in messages -%}
{%- if message.role == "user" -%}{%- set asked.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- set text = message.content or "" -%}
{%- if message.role == "assistant" -%}
<|im_start|>assistant
{{ "<think>\n" ~ message.reasoning_content ~ "\n</think>\n\n"
   if enable_thinking and message.reasoning_content and (preserve_thinking or loop.index0 > asked.last) else "" }}
{{- text }}
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
        self,
        messages: Sequence[ChatDict],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation in ChatML; see `Tokenizer.render`."""
        told = {**(variables or {}), "messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        return _template().render(told)


@lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment

    # As transformers sets up its own templates, so that both read this one alike.
    environment: Any = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["tojson"] = _json
    return environment.from_string(CHATML_TEMPLATE)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
