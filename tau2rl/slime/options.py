"""Every option that slime's `train.py` takes, and the check of a command line against them.

slime reads its options with `parse_known_args`, twice, so that it ignores what it does not know: a misspelled option trains for a
day without it. `options.json` is made by `scripts/make_slime_contract.py`; the commits it was read at are in it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from tau2rl.errors import UserError

Nargs = int | str | None  # as argparse means it; None: one value
FILE = "options.json"
ENGINE = ("sglang", "sglang-router", "slime(sglang)")  # sources that are not read where no engine is started
NO_ENGINE = ("--debug-train-only", "--load-debug-rollout-data")
REQUIRED = "--rollout-batch-size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: `Option(names=("--lr",), source="megatron", type="float", nargs=None)`."""

    names: tuple[str, ...]
    source: str  # whose it is: "slime", "megatron", "sglang", "sglang-router", ...
    type: str = "text"  # "int", "float", "json" or "text"
    nargs: Nargs = None  # 0: a switch
    choices: tuple[str, ...] = ()  # () = any value
    repeats: bool = False  # whether it may stand twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """The options by every name that they have, and what they were read from."""

    versions: Mapping[str, str]  # {"slime": "624b824a898a...", "megatron": ..., "sglang": ...}
    options: Mapping[str, Option]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One option of a command line with its values: `Given(name="--lr", values=("1e-06",))`."""

    name: str
    values: tuple[str, ...]


@cache
def contract() -> Contract:
    """The contract of the pinned versions."""
    data = json.loads(files("tau2rl.slime").joinpath(FILE).read_text(encoding="utf-8"))
    return read(data)


def read(data: Mapping[str, Any]) -> Contract:
    """The contract in the layout of `options.json`."""
    options: dict[str, Option] = {}
    for entry in data["options"]:
        values = {**entry, "names": tuple(entry["names"]), "choices": tuple(entry.get("choices", ()))}
        option = Option(**values)
        options.update(dict.fromkeys(option.names, option))
    return Contract(versions=data["versions"], options=options)


def split(argv: Sequence[str]) -> list[Given]:
    """The options of a command line. Raises UserError for a value that no option stands before.

    >>> split(["--lr", "1e-06", "--colocate"])
    [Given(name='--lr', values=('1e-06',)), Given(name='--colocate', values=())]
    """
    found: list[Given] = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found.append(Given(name=name, values=(value,) if equals else ()))
        elif found:
            found[-1] = Given(name=found[-1].name, values=(*found[-1].values, word))
        else:
            raise UserError(f"`{word}` is a value without an option", hint="options of slime begin with two dashes")
    return found


def check(argv: Sequence[str], known: Contract | None = None) -> None:
    """Refuse a command line that slime would misread. Raises UserError that names the option and the nearest."""
    known = known or contract()
    given = split(argv)
    names = [item.name for item in given]
    for item in given:
        option = lookup(item.name, known)
        _check_values(item, option)
        if names.count(item.name) > 1 and not option.repeats:
            raise UserError(f"`{item.name}` is given twice, and slime reads the last one alone")
        if option.source in ENGINE and (off := next((name for name in NO_ENGINE if name in names), None)):
            raise UserError(f"slime does not read `{item.name}` beside `{off}`", hint="no engine is started there: leave it out")
    if REQUIRED not in names:
        raise UserError(f"slime needs `{REQUIRED}`")


def lookup(name: str, known: Contract | None = None) -> Option:
    """The option of a name. Raises UserError with the nearest one."""
    options = (known or contract()).options
    if name in options:
        return options[name]
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    raise UserError(f"slime has no option `{name}`", hint=f"did you mean `{near[0]}`?" if near else "names are in slime's docs")


def _check_values(given: Given, option: Option) -> None:
    count, name = len(given.values), given.name
    match option.nargs:
        case None:
            fits, wanted = count == 1, "one value"
        case int():
            fits, wanted = count == option.nargs, "no value" if option.nargs == 0 else f"{option.nargs} values"
        case "+":
            fits, wanted = count >= 1, "one value or more"
        case "?":
            fits, wanted = count <= 1, "at most one value"
        case _:
            fits, wanted = True, ""
    if not fits:
        raise UserError(f"`{name}` takes {wanted}, not `{' '.join(given.values)}`")
    for value in given.values:
        if option.choices and value not in option.choices:
            near = difflib.get_close_matches(value, option.choices, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"one of: {', '.join(option.choices)}"
            raise UserError(f"`{name}` cannot be `{value}`", hint=hint)
        try:
            READERS.get(option.type, str)(value)
        except ValueError:
            raise UserError(f"`{name}` is {NOUNS[option.type]}, not `{value}`") from None


READERS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "json": json.loads}
NOUNS = {"int": "a whole number", "float": "a number", "json": "JSON"}
