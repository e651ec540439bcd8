"""Keeps the values of secrets out of everything that is written; nothing else here ever holds one."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import os
import re
import string
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

from tau2rl import settings
from tau2rl.config import flatten
from tau2rl.errors import UserError
from tau2rl.types import EpisodeRecord

MIN_LENGTH = 8  # shorter "keys" (`EMPTY`, `none`, `test`) are placeholders of local servers and words of every text
# So are these, and any one word of lower-case letters (`anything`, `changeme`); replaced, they would shred text.
PLACEHOLDERS = frozenset({"not-needed", "not-used", "no-key", "no-key-required", "sk-no-key-required", "dummy-key", "test-key"})
WORD_LENGTH = 16  # letters that are no longer taken for a word
# A message may be cut off in the middle of a key. So many characters of its beginning are more than the prefix that all keys
# of a provider have (`sk-ant-api03-`).
HEAD_LENGTH = 16
_BASE64 = frozenset(f"{string.ascii_letters}{string.digits}+/-_=")


class Redactor:
    """Replaces the values of secrets by their names: `Redactor().text("401 for sk-live-1234")` is "401 for [OPENAI_API_KEY]".

    A value is found as it is (after `Bearer` too), with any of its characters escaped as in JSON, a URL, HTML or a repr, however
    often; in hex; in base64 with whatever stands around it (`Authorization: Basic`); and cut off at its end. What stands where
    only a credential does (`Bearer ...`, `?api_key=...`) goes whoever it belongs to: a token may be made from a key.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Everything that `settings.credentials` knows; `names`: further variables that hold one."""
        found = ((part, name) for name, value in settings.credentials(names).items() for part in _parts(value, name))
        self._values = dict(sorted(found, key=lambda pair: -len(pair[0])))  # a key may begin with another one
        self._hex = [(spelling, name) for value, name in self._values.items() for spelling in _hex(value.encode())]
        self._encoded = [(core, name) for value, name in self._values.items() for core in _base64_cores(value.encode())]

    def text(self, text: str) -> str:
        """The text without the values."""
        if len(text) < MIN_LENGTH:
            return text
        for value, name in self._values.items():
            text = _replace(text, value, f"[{name}]")
        if ESCAPE.search(text):
            for value, name in self._values.items():
                text = _escaped(value).replace(text, f"[{name}]")
        for spelling, name in self._hex:
            text = _replace(text, spelling, f"[{name}]", head=2 * HEAD_LENGTH)
        for core, name in self._encoded:
            text = _replace_token(text, core, f"[{name}]")
        return BEARER.sub(r"\g<before>[CREDENTIAL]", text)

    def values(self, values: Any) -> Any:
        """JSON values with every text in them clean, keys of objects too."""
        if isinstance(values, str):
            return self.text(values)
        if isinstance(values, Mapping):
            return {self.text(str(key)): self.values(value) for key, value in cast("Mapping[str, Any]", values).items()}
        if isinstance(values, list | tuple):
            return [self.values(value) for value in cast("list[Any]", values)]
        return values

    def error(self, error: UserError) -> UserError:
        """The error with clean words: it may quote a server."""
        return UserError(self.text(error.message), hint=self.text(error.hint))

    def record(self, record: EpisodeRecord) -> EpisodeRecord:
        """The record with a clean failure message, the one place where a library's error text ends up."""
        failure = record.episode.failure
        if failure is None or (message := self.text(failure.message)) == failure.message:
            return record
        failure = dataclasses.replace(failure, message=message)
        return dataclasses.replace(record, episode=dataclasses.replace(record.episode, failure=failure))

    def refuse(self, values: Mapping[str, Any]) -> None:
        """Raise UserError when one of the settings holds a secret; a config is written to disk and shown to others."""
        for key, value in flatten(values).items():
            if any(secret in str(value) for secret in self._values):
                raise UserError(f"setting `{key}` holds the value of a secret", hint="settings name the variable that holds it")
            if any(settings.password_of(str(each)) for each in _each(value)):
                raise UserError(
                    f"setting `{key}` is a URL with a password or a key in it",
                    hint="`api_key_env` names the variable that holds a key",
                )


def is_secret(value: str, name: str = "KEY") -> bool:
    """Whether a value of a variable that is named like a credential is one, and no placeholder, word, path or count.

    >>> [is_secret(value) for value in ("sk-live-1234", "test", "anything", "not-needed", "/", "20000000")]
    [True, False, False, False, False, True]
    >>> is_secret("20000000", "MAX_TOKENS")
    False
    """
    if len(value) < MIN_LENGTH or value in PLACEHOLDERS or (value.isdigit() and name.upper().endswith("TOKENS")):
        return False
    if value.isalpha() and value.islower() and len(value) < WORD_LENGTH:
        return False
    return not ("/" in value and os.path.exists(value))


def key_variables(values: Mapping[str, Any]) -> list[str]:
    """The variables that a config names as holders of keys.

    >>> key_variables({"user": {"api_key_env": "MY_KEY", "model": "m"}, "policy": {"api_key_env": None}})
    ['MY_KEY']
    """
    return [value for key, value in flatten(values).items() if key.endswith("api_key_env") and isinstance(value, str)]


def _parts(value: str, name: str) -> set[str]:
    """What of a variable's value a server may echo: without white space, quotes and scheme; lines; keys in JSON."""
    whole = value.strip().strip("\"'").strip()
    found = {value, whole, SCHEME.sub("", whole)}
    found |= {line.strip() for line in whole.splitlines() if len(line.strip()) >= HEAD_LENGTH}
    if whole.startswith("{"):
        with suppress(ValueError, RecursionError):
            inside = flatten(json.loads(whole)).items()
            secrets = [text for key, text in inside if isinstance(text, str) and settings.CREDENTIAL.search(key)]
            found |= {line for text in secrets for line in (text, *text.splitlines()) if len(line) >= HEAD_LENGTH}
    return {part for part in found if is_secret(part, name)}


def _replace(text: str, spelling: str, name: str, head: int = HEAD_LENGTH) -> str:
    """The text with `name` for the spelling, also where it breaks off behind `head` characters."""
    at, begin = 0, spelling[:head]
    while (at := text.find(begin, at)) >= 0:
        end = at + len(begin)
        while end < min(len(text), at + len(spelling)) and text[end] == spelling[end - at]:
            end += 1
        text = f"{text[:at]}{name}{text[end:]}"
        at += len(name)
    return text


class Escaped:
    r"""A value any of whose characters may be escaped: a slash as `\/`, `\u002f`, `\\u002f`, `\x2f`, `%2F`, `%252f`, `&#47;`."""

    def __init__(self, value: str) -> None:
        units = [_unit(char) for char in value]
        self._head, self._tail = re.compile("".join(units[:HEAD_LENGTH])), units[HEAD_LENGTH:]

    def replace(self, text: str, name: str) -> str:
        """The text with `name` for the value, also where it breaks off behind HEAD_LENGTH characters."""
        out, at = list[str](), 0
        while found := self._head.search(text, at):
            out += (text[at : found.start()], name)
            at = found.end()
            for unit in self._tail:
                if not (more := _compiled(unit).match(text, at)):
                    break
                at = more.end()
        return "".join((*out, text[at:]))


_escaped = functools.cache(Escaped)  # made when a text has an escape: that takes milliseconds
_compiled = functools.cache(re.compile)
ESCAPE = re.compile(r"\\|%[0-9a-f]{2}|&(#|[a-z]+;)|\+", re.IGNORECASE)  # what every spelling but the plain one has
NAMED = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}
LETTERS = {"\n": "n", "\r": "r", "\t": "t"}


def _unit(char: str) -> str:
    """A pattern for one character, raw or in any escape; bounded, so that a run of backslashes is read once."""
    code, bytes_ = ord(char), char.encode("utf-8", "surrogatepass")
    pairs = char.encode("utf-16-be", "surrogatepass")
    utf16 = "".join(rf"\\{{1,8}}u{pairs[i : i + 2].hex()}" for i in range(0, len(pairs), 2))
    ways = [
        rf"\\{{0,8}}{re.escape(char)}",
        rf"(?i:{utf16}|\\{{1,8}}x{code:02x}|\\{{1,8}}u\{{?0*{code:x}\}}?)",
        "(?i:" + "".join(rf"\\{{1,8}}x{byte:02x}" for byte in bytes_) + ")",
        "(?i:" + "".join(f"%(?:25){{0,4}}{byte:02x}" for byte in bytes_) + ")",
        rf"(?i:&(?:amp;){{0,4}}(?:#0*{code}|#x0*{code:x}{'|' + NAMED[char] if char in NAMED else ''});)",
    ]
    ways += [rf"\\{{1,8}}{LETTERS[char]}"] if char in LETTERS else []
    ways += [r"\+"] if char == " " else []
    return f"(?:{'|'.join(ways)})"


# Where nothing but a credential stands. A word of a sentence has no digit (`basic troubleshooting`).
SCHEME = re.compile(r"^(bearer|basic|token|apikey)\s+", re.IGNORECASE)
BEARER = re.compile(
    r"(?P<before>\b(?:bearer|basic)(?:\s+|%20|\+)"
    r"|\b(?:x-|goog-|ocp-apim-){0,3}(?:api[-_]?key|subscription-key)\\*[\"']?\s*[:=]\s*\\*[\"']?"
    r"|[?&](?:[\w-]*(?:key|token|secret|password|passwd)|sig|signature)=)"
    r"(?!\[)(?=[\w.~+/%=-]*\d)[\w.~+/%=-]{12,}",
    re.IGNORECASE,
)


def _hex(value: bytes) -> set[str]:
    """Two digits a byte, in one run or apart, in either case."""
    plain = {value.hex(), value.hex(":"), value.hex(" ")}
    return plain | {spelling.upper() for spelling in plain}


def _replace_token(text: str, core: str, name: str) -> str:
    """The text with `name` for every run of base64 characters that holds the core."""
    at = 0
    while (at := text.find(core, at)) >= 0:
        start, end = at, at + len(core)
        while start and text[start - 1] in _BASE64:
            start -= 1
        while end < len(text) and text[end] in _BASE64:
            end += 1
        text = f"{text[:start]}{name}{text[end:]}"
        at = start + len(name)
    return text


def _base64_cores(value: bytes) -> set[str]:
    """What the base64 of every text that holds the value has in common; the value begins at one of three places of a group."""
    found: set[str] = set()
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + value).decode()
        first = (before * 8 + 5) // 6  # the characters ahead hold bits of what stands before the value
        core = encoded[first : (before + len(value)) * 8 // 6][: 2 * HEAD_LENGTH]  # the rest of the token goes anyway
        found |= {core, core.replace("+", "-").replace("/", "_")}
    return found


def _each(value: object) -> list[object]:
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else [value]
