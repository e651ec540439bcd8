"""What every group of settings is, and the few kinds of value that more than one of them holds."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict

DomainName = Literal["airline", "retail", "telecom", "mock"]
DOMAINS: tuple[DomainName, ...] = get_args(DomainName)


def _variable_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("this is the name of an environment variable, such as `OPENAI_API_KEY`, and never the key itself")
    return text


def _without_password(url: str) -> str:
    authority = re.split(r"[/?#]", re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*:)?//", "", url), maxsplit=1)[0]
    if "@" in authority:
        raise ValueError("a URL is stored and shown, so it holds no user and no password; keys come from the environment")
    return url


VariableName = Annotated[str, AfterValidator(_variable_name)]
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
