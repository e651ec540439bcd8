"""What every group of settings is, and the few kinds of value that more than one of them holds."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict
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
