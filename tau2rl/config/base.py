"""What every group of settings is, kinds of value that several of them hold, and all settings as they are read off a class."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from tau2rl import plugins

TEST_SPLITS = ("test", "synth-test", "base", "small", "full")  # those that have test tasks
DOMAINS = ("airline", "retail", "telecom", "mock")  # tau2's own; a run may name any that is registered with tau2


class WordOrReference:
    """Checks a setting that names one of our own `words`, or code of the user's as `package.module:Name`."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __call__(self, text: str) -> str:
        """The text as it is. Raises what pydantic raises for a word that is not in a Literal, so that the nearest is named."""
        if text in self.words or plugins.is_reference(text):
            return text
        expected = ", ".join(f"'{word}'" for word in self.words)
        raise PydanticCustomError(
            "literal_error", "input should be {expected}, or code of your own as `package.module:Name`", {"expected": expected}
        )


def _reference(text: str) -> str:
    if not plugins.is_reference(text):
        raise ValueError("this names code of your own as `package.module:Name`")
    return text


def _module(text: str) -> str:
    if not plugins.MODULE.fullmatch(text):
        raise ValueError("this is the name of a module, such as `my_pkg.my_domain`")
    return text


def _variable_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("this is the name of an environment variable, such as `OPENAI_API_KEY`, and never the key itself")
    return text


def _without_password(url: str) -> str:
    authority = re.split(r"[/?#]", re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*:)?//", "", url), maxsplit=1)[0]
    if "@" in authority:
        raise ValueError("a URL is stored and shown, so it holds no user and no password; keys come from the environment")
    return url


def _iso_date(text: str) -> str:
    return date.fromisoformat(text).isoformat()


VariableName = Annotated[str, AfterValidator(_variable_name)]
Reference = Annotated[str, AfterValidator(_reference)]
Module = Annotated[str, AfterValidator(_module)]
IsoDate = Annotated[str, AfterValidator(_iso_date)]
Url = Annotated[str, AfterValidator(_without_password)]


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,  # YAML reads a task id like `17` as a number
        allow_inf_nan=False,
        hide_input_in_errors=True,  # people put keys where the name of a variable should be
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of a stage: `Setting(name="train.lr", type=float, default=1e-5, text="Highest learning rate.")`."""

    name: str
    type: Any
    default: Any
    text: str


@cache
def every_setting(model: type[BaseModel], prefix: str = "") -> tuple[Setting, ...]:
    """Every setting below a config class, in the order of the classes; sections themselves are none."""
    found: list[Setting] = []
    for key, info in model.model_fields.items():
        inner = section_of(info.annotation)
        if inner is not None:
            found += every_setting(inner, f"{prefix}{key}.")
        else:
            text = " ".join((info.description or "").split())
            default = info.get_default(call_default_factory=True)
            found.append(Setting(name=prefix + key, type=_with_words(info), default=default, text=text))
    return tuple(found)


def _with_words(info: FieldInfo) -> Any:
    """The type of a field; of one that takes a word of ours or a reference, with the words."""
    words = [part.func for part in info.metadata if isinstance(part, AfterValidator) and isinstance(part.func, WordOrReference)]
    return Annotated[info.annotation, words[0]] if words else info.annotation


def known_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted name that may stand in a config, sections included."""
    names: list[str] = []
    for key, info in model.model_fields.items():
        names.append(prefix + key)
        if inner := section_of(info.annotation):
            names += known_names(inner, f"{prefix}{key}.")
    return names


def value_of(config: BaseModel, name: str) -> Any:
    """The value behind a dotted name; None below a section that is not there.

    >>> from tau2rl.config import TasksConfig
    >>> value_of(TasksConfig(limit=3), "limit")
    3
    """
    value: Any = config
    for key in name.split("."):
        value = getattr(value, key, None)
    return value


def arms_of(annotation: Any) -> tuple[Any, ...]:
    """What a value may be, one by one: the arms of a union without their `Annotated`; `type(None)` for one that may be left out.

    >>> arms_of(int | None)
    (<class 'int'>, <class 'NoneType'>)
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        return arms_of(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(arm for part in get_args(annotation) for arm in arms_of(part))
    return (annotation,)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The class of a section, also of one that may be left out; None for a value."""
    for arm in arms_of(annotation):
        if isinstance(arm, type) and issubclass(arm, BaseModel):
            return arm
    return None


def words_of(annotation: Any) -> tuple[str, ...]:
    """The words that a setting may be, where they are listed.

    >>> words_of(Literal["local", "slime"])
    ('local', 'slime')
    """
    if get_origin(annotation) is Annotated and isinstance(annotation.__metadata__[0], WordOrReference):
        return annotation.__metadata__[0].words
    literals = [arm for arm in arms_of(annotation) if get_origin(arm) is Literal]
    return tuple(str(word) for arm in literals for word in get_args(arm))


def items_of(annotation: Any) -> Any:
    """The type of the items of a list or of `tuple[X, ...]`; None for what is no list.

    >>> items_of(tuple[int, ...]), items_of(str)
    (<class 'int'>, None)
    """
    for arm in arms_of(annotation):
        if get_origin(arm) in (list, tuple):
            return get_args(arm)[0]
    return None


def values_of(annotation: Any) -> Any:
    """The type of the values of a mapping; None for what is none."""
    for arm in arms_of(annotation):
        if get_origin(arm) is dict:
            return get_args(arm)[1]
    return None


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names of nested mappings with their values, an empty mapping as a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
