"""From a file, `--set a.b=c` and options to a config, and from a config to plain values.

The one way in is `build`: unknown keys are errors, and every error is a `UserError` in words.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tau2rl.config.base import Section
from tau2rl.config.renamed import with_new_names
from tau2rl.config.stages import NOT_IDENTITY, StageConfig
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


C = TypeVar("C", bound=Section)


def build(model: type[C], values: Mapping[str, Any]) -> C:
    """Validate `values` as `model`. Raises UserError that names the key and, for an unknown one, the nearest."""
    try:
        return model.model_validate(with_new_names(model, values))
    except ValidationError as error:
        raise explain(model, error) from None


def load(model: type[C], file: Path | None, sets: Sequence[str] = (), overrides: Mapping[str, Any] | None = None) -> C:
    """The config of a run: a YAML or JSON file, then `--set a.b=c`, then options of the command line.

    `overrides` maps dotted names to values; None means "not given". Raises UserError.
    """
    values = read_file(file) if file else {}
    for item in sets:
        name, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"cannot read `--set {item}`", hint="write it as NAME=VALUE, for example --set rollout.num_samples=8")
        put(values, name.strip(), parse_value(text))
    for name, value in (overrides or {}).items():
        if value is not None:
            put(values, name, value)
    return build(model, values)


def read_file(file: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises UserError."""
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such config file `{file}`", hint="the ready-made ones are in `configs/`") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read config file `{file}`: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"config file `{file}` is not a mapping of settings")
    return cast("dict[str, Any]", data)


def parse_value(text: str) -> Any:
    """A value as YAML reads it: `3`, `true`, `null`, `[a, b]`, `text`.

    >>> parse_value("[retail, 3]"), parse_value("1e-6"), parse_value("on-call")
    (['retail', 3], 1e-06, 'on-call')
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):  # YAML 1.1 reads `1e-6`, which people type, as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name in nested mappings, making the ones on the way.

    >>> d = {}
    >>> put(d, "a.b", 1)
    >>> d
    {'a': {'b': 1}}
    """
    *path, last = name.split(".")
    for part in path:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"`{part}` in `{name}` is a value, not a section")
        values = cast("dict[str, Any]", inner)
    values[last] = value


def dump(config: Section) -> dict[str, Any]:
    """The config as JSON-ready values, every setting resolved."""
    return config.model_dump(mode="json")


def identity(config: StageConfig) -> dict[str, Any]:
    """The settings that decide what a run measures."""
    return {k: v for k, v in dump(config).items() if k not in NOT_IDENTITY}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names to values.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            out.update(flatten(cast("dict[str, Any]", value), f"{name}."))
        else:
            out[name] = value
    return out
