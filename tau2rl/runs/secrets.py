"""Keeps the values of secrets out of everything that is written; nothing else here ever holds one."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, quote_plus

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

    A value is found as it is (after `Bearer` too), escaped as in JSON, a URL or HTML, in base64 with whatever stands around it
    (`Authorization: Basic`), and cut off at its end.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Everything that `settings.credentials` knows; `names`: further variables that hold one."""
        self._values = {value: name for name, value in settings.credentials(names).items() if is_secret(value)}
        spelled = {spelling: name for value, name in self._values.items() for spelling in _spellings(value)}
        self._spelled = sorted(spelled.items(), key=lambda pair: -len(pair[0]))  # a key may begin with another one
        self._encoded = [(core, name) for value, name in self._values.items() for core in _base64_cores(value.encode())]

    def text(self, text: str) -> str:
        """The text without the values."""
        for spelling, name in self._spelled:
            text = _replace(text, spelling, f"[{name}]")
        for core, name in self._encoded:
            text = _replace_token(text, core, f"[{name}]")
        return text

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
                    f"setting `{key}` is a URL with a password", hint="`api_key_env` names the variable that holds a key"
                )


def is_secret(value: str) -> bool:
    """Whether a value of a variable that is named like a credential is one, and no placeholder, word, path or number.

    >>> [is_secret(value) for value in ("sk-live-1234", "test", "anything", "not-needed", "/", "20000000")]
    [True, False, False, False, False, False]
    """
    if len(value) < MIN_LENGTH or value in PLACEHOLDERS or value.isdigit():
        return False
    if value.isalpha() and value.islower() and len(value) < WORD_LENGTH:
        return False
    return not ("/" in value and "\0" not in value and len(value) < 1024 and Path(value).exists())  # a file that holds the key


def key_variables(values: Mapping[str, Any]) -> list[str]:
    """The variables that a config names as holders of keys.

    >>> key_variables({"user": {"api_key_env": "MY_KEY", "model": "m"}, "policy": {"api_key_env": None}})
    ['MY_KEY']
    """
    return [value for key, value in flatten(values).items() if key.endswith("api_key_env") and isinstance(value, str)]


def _spellings(value: str) -> set[str]:
    """How a server may echo a value: as it is, and as JSON (in JSON, too), URLs, HTML and reprs have it."""
    quoted = json.dumps(value)[1:-1]
    found = {value, quoted, json.dumps(value, ensure_ascii=False)[1:-1], json.dumps(quoted)[1:-1], repr(value)[1:-1]}
    for url in (quote(value, safe=""), quote(value), quote_plus(value)):
        found |= {url, re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), url)}
    return found | {html.escape(value)}


def _replace(text: str, spelling: str, name: str) -> str:
    """The text with `name` for the spelling, also where it breaks off behind HEAD_LENGTH characters."""
    at, head = 0, spelling[:HEAD_LENGTH]
    while (at := text.find(head, at)) >= 0:
        end = at + len(head)
        while end < min(len(text), at + len(spelling)) and text[end] == spelling[end - at]:
            end += 1
        text = f"{text[:at]}{name}{text[end:]}"
        at += len(name)
    return text


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
