"""`tau2rl doctor` and `tau2rl version`: what this machine has and lacks."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Annotated, Any

import typer

import tau2rl
from tau2rl import console
from tau2rl.cli.options import RUN, ConfigFile, Json, Sets, user_settings
from tau2rl.config import ChatConfig, EvalConfig, UserConfig, build, load
from tau2rl.doctor import USES, examine
from tau2rl.doctor.services import Check
from tau2rl.errors import UserError
from tau2rl.runs.provenance import LIBRARIES, library_versions

MARKS = {"ok": "ok", "missing": "MISSING", "optional": "-"}


def doctor(
    use: Annotated[
        str, typer.Option("--for", help=f"What the machine is meant for: {', '.join(USES)}.", metavar="USE", rich_help_panel=RUN)
    ] = "laptop",
    config: ConfigFile = None,
    sets: Sets = None,
    user_model: Annotated[
        str | None,
        typer.Option(
            "--user-model", help="Look for the key of this litellm model, or `scripted`.", metavar="NAME", rich_help_panel=RUN
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Prove the chat template of this checkpoint too.", metavar="DIR", rich_help_panel=RUN),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what this machine has and lacks, with a hint for each gap.

    With a config, its policy server and its user simulator are looked for too. Keys are named, never shown.

    Exits with 1 when something that this use needs is missing.
    """
    if use not in USES:
        raise UserError(f"no such use `{use}`", hint=f"one of: {', '.join(USES)}")
    asked: dict[str, Any] = {}
    if config or sets:
        # An evaluation must name its tokenizer; whether its servers answer can be asked without one.
        first = [] if config or any(item.startswith("chat.") for item in sets or ()) else ["chat.tokenizer=bytes"]
        last = [f"chat.tokenizer={tokenizer}"] if tokenizer else []
        chosen = load(EvalConfig, config, [*first, *(sets or []), *last], user_settings(user_model))
        asked = {"user": chosen.user, "policy": chosen.policy, "address": chosen.launch.address}
        asked |= {} if first and not tokenizer else {"chat": chosen.chat}
    elif user_model:
        asked = {"user": build(UserConfig, {"kind": "scripted"} if user_model == "scripted" else {"model": user_model})}
    if tokenizer and "chat" not in asked:
        asked["chat"] = build(ChatConfig, {"tokenizer": tokenizer})
    checks: list[Check] = []
    for check in examine(use, **asked):
        checks.append(check)
        if not as_json:
            console.emit(f"{MARKS[check.state]:8} {check.name:16} {check.detail}")
            if check.hint:
                console.emit(f"{'':25} hint: {check.hint}")
    missing = [check.name for check in checks if check.state == "missing"]
    if as_json:
        console.emit_json({"for": use, "ready": not missing, "checks": [asdict(check) for check in checks]})
    else:
        console.say(f"\nready for {use}" if not missing else f"\nnot ready for {use}: {', '.join(missing)}")
    raise typer.Exit(1 if missing else 0)


def version(as_json: Json = False) -> None:
    """Print the versions of tau2rl, of Python and of the libraries that a result depends on."""
    libraries = library_versions(name for name in LIBRARIES if name != "tau2rl")
    versions = {"tau2rl": tau2rl.__version__, "python": platform.python_version(), **libraries}
    if as_json:
        console.emit_json(versions)
    else:
        console.emit("\n".join(f"{name} {number}" for name, number in versions.items()))
