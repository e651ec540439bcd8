"""`tau2rl doctor` and `tau2rl version`: what this machine has and lacks."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tau2rl
from tau2rl import console
from tau2rl.cli.options import RUN, ConfigFile, Json, Sets, user_settings
from tau2rl.config import (
    STAGES,
    ChatConfig,
    EvalConfig,
    PipelineConfig,
    StageConfig,
    UserConfig,
    build,
    known_names,
    load_config,
    read_config_file,
)
from tau2rl.doctor import USES, examine, examine_for
from tau2rl.doctor.services import CheckResult
from tau2rl.errors import UserError
from tau2rl.runs.folder import run_path
from tau2rl.runs.provenance import LIBRARIES, library_versions

if TYPE_CHECKING:
    from tau2rl.launch.checks import Need

KNOWN = tuple(dict.fromkeys([*USES, *STAGES]))
MARKS = {"ok": "ok", "missing": "MISSING", "optional": "-"}


def doctor(
    use: Annotated[
        str | None,
        typer.Option(
            "--for",
            help=f"What the machine is meant for: {', '.join(KNOWN)}. (default: the stage of the config, else `laptop`)",
            metavar="USE",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
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

    With the config of a stage, all that its settings need is looked for: packages, data, checkpoint, tasks, keys, chat template,
    servers. Keys are named, never shown.

    Exits with 1 when something that this use needs is missing.
    """
    stored = read_config_file(config).get("stage") if config else None
    if use not in (None, *KNOWN):
        raise UserError(f"no such use `{use}`", hint=f"one of: {', '.join(KNOWN)}")
    if use in STAGES and stored not in (None, use):
        raise UserError(f"`{config}` is a config of stage `{stored}`, not of `{use}`", hint="leave out `--for`: the file says it")
    if config and (use is None or use not in STAGES):  # a file says itself for what it is
        use = str(stored or "eval")
    use = use or "laptop"
    if use in STAGES and (config or use != "eval"):
        if not config and not sets:
            raise UserError(f"what `{use}` needs is what its settings say", hint=f"tau2rl doctor --for {use} -c FILE")
        words, checks = f"the settings of `{config or use}`", _of_the_config(use, config, sets or [], user_model, tokenizer)
    else:
        words, checks = USES[use], _of_the_use(use, sets or [], user_model, tokenizer)
    if not as_json:
        console.say(f"for {use}: {words}" + ("; `--for` and `-c` name another use" if use == "laptop" else "") + "\n")
    _show(use, checks, as_json=as_json)


def _of_the_config(
    stage: str, file: Path | None, sets: Sequence[str], user: str | None, tokenizer: str | None
) -> Iterator[CheckResult]:
    """The checks of all that a stage's settings need. Raises UserError."""
    from tau2rl.launch.checks import Need, needs, refuse_lost
    from tau2rl.recipes.pipeline_plan import plan_pipeline, with_files

    model = STAGES.get(stage)
    if model is None:
        raise UserError(f"`{file}` is of an unknown stage `{stage}`", hint=f"known: {', '.join(STAGES)}")
    options = user_settings(user) if "user" in model.model_fields else {}
    if tokenizer and "chat.tokenizer" in known_names(model):
        options["chat.tokenizer"] = tokenizer
    config = load_config(model, file, sets, options)

    def checks(run: StageConfig, made: Path | None = None) -> Iterator[CheckResult]:
        yield from examine_for(run, address=run.launch.address)
        yield from (_found(need) for need in needs(run, made=made) if need.name != "keys")  # user simulator and policy said it

    if not isinstance(config, PipelineConfig):
        return checks(config)
    folder = run_path(config)
    plan = plan_pipeline(with_files(config, file.parent if file else Path()), folder)
    of_steps = _by_step([(planned.label, checks(planned.config, folder)) for planned in plan])
    return itertools.chain(of_steps, [_found(Need("files of steps", partial(refuse_lost, plan)))])


def _by_step(checks: Sequence[tuple[str, Iterator[CheckResult]]]) -> Iterator[CheckResult]:
    """What is found for several steps once, behind all of them, with their names where it is not so for each."""
    found: dict[object, tuple[CheckResult, dict[str, None]]] = {}
    for step, of_step in checks:
        for check in of_step:
            # What is free may have changed in between.
            what = (check.name, check.state) if check.name in ("memory", "disk") else check
            found.setdefault(what, (check, {}))[1][step] = None
    for check, steps in found.values():
        yield check if len(steps) == len(checks) else replace(check, detail=f"{check.detail} ({', '.join(steps)})")


def _found(need: Need) -> CheckResult:
    try:
        return CheckResult(name=need.name, state="ok", detail=need.find())
    except UserError as error:
        return CheckResult(name=need.name, state="missing", detail=error.message, hint=error.hint or "correct the settings")


def _of_the_use(use: str, sets: Sequence[str], user: str | None, tokenizer: str | None) -> Iterator[CheckResult]:
    """The checks for a use; with settings of an evaluation, of its servers and its chat template. Raises UserError."""
    asked: dict[str, Any] = {}
    if sets:
        # An evaluation must name its tokenizer; whether its servers answer can be asked without one.
        first = [] if any(item.startswith("chat.") for item in sets) else ["chat.tokenizer=bytes"]
        last = [f"chat.tokenizer={tokenizer}"] if tokenizer else []
        chosen = load_config(EvalConfig, None, [*first, *sets, *last], user_settings(user))
        asked = {"user": chosen.user, "policy": chosen.policy, "address": chosen.launch.address}
        asked |= {} if first and not tokenizer else {"chat": chosen.chat}
    elif user:
        asked = {"user": build(UserConfig, {"kind": "scripted"} if user == "scripted" else {"model": user})}
    if tokenizer and "chat" not in asked:
        asked["chat"] = build(ChatConfig, {"tokenizer": tokenizer})
    return examine(use, **asked)


def _show(use: str, found: Iterator[CheckResult], *, as_json: bool) -> None:
    """The checks as they are made, and the verdict; ends with the exit code."""
    checks: list[CheckResult] = []
    for check in found:
        checks.append(check)
        if not as_json:
            console.emit(f"{MARKS[check.state]:8} {check.name:16} {check.detail}")
            for hint in check.hint.splitlines():
                console.emit(f"{'':25} hint: {hint}")
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
