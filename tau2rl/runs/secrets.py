"""Keeps the values of secrets out of everything that is written; nothing else here ever holds one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from tau2rl import settings
from tau2rl.config import flatten
from tau2rl.errors import UserError
from tau2rl.types import EpisodeRecord

MIN_LENGTH = 8  # shorter "keys" (`EMPTY`, `none`) are placeholders of local servers and words of every text


class Redactor:
    """Replaces the values of secrets by their names: `Redactor().text("401 for sk-live-1234")` is "401 for [OPENAI_API_KEY]"."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """The usual keys, and `names`: further variables that hold one."""
        values = {name: settings.secret(name) for name in (*settings.KNOWN_KEYS, *names)}
        self._names = {value: name for name, value in values.items() if value and len(value) >= MIN_LENGTH}

    def text(self, text: str) -> str:
        """The text without the values."""
        for value, name in self._names.items():
            text = text.replace(value, f"[{name}]")
        return text

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
            text = str(value)
            if self.text(text) != text:
                raise UserError(f"setting `{key}` holds the value of a secret", hint="settings name the variable that holds it")


def key_variables(values: Mapping[str, Any]) -> list[str]:
    """The variables that a config names as holders of keys.

    >>> key_variables({"user": {"api_key_env": "MY_KEY", "model": "m"}, "policy": {"api_key_env": None}})
    ['MY_KEY']
    """
    return [value for key, value in flatten(values).items() if key.endswith("api_key_env") and isinstance(value, str)]
