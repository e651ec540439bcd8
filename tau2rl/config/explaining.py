"""What is wrong with settings, in words: the key, its value, and the nearest name that exists."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tau2rl.errors import UserError

UNSEEN = {"api_key_env", "api_base", "url", "address"}  # settings whose wrong values no message repeats


def known_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted setting of a config class, sections included."""
    names: list[str] = []
    for key, info in model.model_fields.items():
        names.append(prefix + key)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            names += known_names(info.annotation, f"{prefix}{key}.")
    return names


def explain(model: type[BaseModel], error: ValidationError) -> UserError:
    """The mistakes that pydantic found, one a line, with hints."""
    names = known_names(model)
    lines: list[str] = []
    hints: list[str] = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"no such setting `{name}`")
            hints += _meant(_nearest_setting(name, names))
        else:
            lines.append(_sentence(name, item))
            hints += _meant(_nearest_word(item))
    return UserError("\n".join(lines), hint="; ".join(dict.fromkeys(hints)) or "`tau2rl config show` lists every setting")


def _nearest_setting(name: str, names: list[str]) -> list[str]:
    """The setting with the nearest dotted name, else with the nearest last part (which stands elsewhere)."""
    return difflib.get_close_matches(name, names, n=1, cutoff=0.5) or difflib.get_close_matches(
        name.rpartition(".")[2], [n.rpartition(".")[2] for n in names], n=1
    )


def _nearest_word(item: ErrorDetails) -> list[str]:
    """Of the words that the setting may be, the nearest."""
    if item["type"] != "literal_error":
        return []
    words = re.findall(r"'([^']+)'", str(item.get("ctx", {}).get("expected", "")))
    return difflib.get_close_matches(str(item["input"]), words, n=1)


def _meant(near: list[str]) -> list[str]:
    return [f"did you mean `{near[0]}`?"] if near else []


def _sentence(name: str, item: ErrorDetails) -> str:
    message = item["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}"
    if not name:
        return message
    value: Any = item["input"]
    unseen = isinstance(value, dict) or UNSEEN.intersection(map(str, item["loc"]))
    return f"`{name}`{'' if unseen else f' = {json.dumps(value, default=str)}'}: {message}"
