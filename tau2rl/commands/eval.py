"""`tau2rl eval`: options -> config -> launch -> the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tau2rl import console
from tau2rl.commands.options import (
    AGENT,
    CUSTOMER,
    OUTPUT,
    RUN,
    WHAT,
    WHERE,
    ConfigFile,
    Domains,
    Json,
    Limit,
    Sets,
    Split,
    setting,
    split_list,
    user_overrides,
)
from tau2rl.commands.results import print_report, read_report
from tau2rl.commands.run import carry_out, print_plan
from tau2rl.config import EvalConfig, load
from tau2rl.store.run import run_path

NUMBER, TEXT = "N", "NAME"


def evaluate(
    config: ConfigFile = None,
    sets: Sets = None,
    domains: Domains = None,
    split: Split = None,
    limit: Limit = None,
    num_samples: Annotated[int | None, setting("rollout.num_samples", "--num-samples", panel=WHAT, metavar=NUMBER)] = None,
    greedy: Annotated[bool | None, setting("rollout.greedy", "--greedy/--no-greedy", panel=WHAT)] = None,
    policy: Annotated[str | None, setting("policy.kind", "--policy", panel=AGENT, metavar="KIND")] = None,
    url: Annotated[str | None, setting("policy.url", "--url", panel=AGENT, metavar="URL")] = None,
    model: Annotated[str | None, setting("policy.model", "--model", panel=AGENT, metavar=TEXT)] = None,
    tokenizer: Annotated[str | None, setting("chat.tokenizer", "--tokenizer", panel=AGENT, metavar="DIR")] = None,
    protocol: Annotated[str | None, setting("chat.protocol", "--protocol", panel=AGENT, metavar=TEXT)] = None,
    temperature: Annotated[
        float | None, setting("policy.sampling.temperature", "--temperature", panel=AGENT, metavar="X")
    ] = None,
    top_p: Annotated[
        float | None, setting("policy.sampling.top_p", "--top-p", panel=AGENT, metavar="X", note="Nucleus sampling; 1 = off.")
    ] = None,
    top_k: Annotated[int | None, setting("policy.sampling.top_k", "--top-k", panel=AGENT, metavar=NUMBER)] = None,
    max_steps: Annotated[int | None, setting("limits.max_steps", "--max-steps", panel=AGENT, metavar=NUMBER)] = None,
    user_model: Annotated[
        str | None,
        setting(
            "user.model",
            "--user-model",
            panel=CUSTOMER,
            metavar=TEXT,
            note="litellm model that plays the customer, or `scripted` for none.",
        ),
    ] = None,
    name: Annotated[str | None, setting("name", "--name", panel=RUN, metavar=TEXT)] = None,
    output: Annotated[Path | None, setting("output", "--output", panel=RUN, metavar="DIR")] = None,
    resume: Annotated[bool | None, setting("resume", "--resume", panel=RUN)] = None,
    seed: Annotated[
        int | None, setting("seed", "--seed", panel=RUN, metavar=NUMBER, note="Every attempt's own seed is derived from it.")
    ] = None,
    concurrency: Annotated[int | None, setting("rollout.concurrency", "--concurrency", panel=RUN, metavar=NUMBER)] = None,
    address: Annotated[str | None, setting("launch.address", "--address", panel=WHERE, metavar="URL")] = None,
    inline: Annotated[bool | None, setting("launch.inline", "--inline", panel=WHERE)] = None,
    detach: Annotated[bool | None, setting("launch.detach", "--detach", panel=WHERE)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved config and what would run; run nothing.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Json = False,
) -> None:
    """Let a policy play tasks, and say how many it solves: pass@k and pass^k with their intervals and floors.

    Settings come from the config file, then --set, then the options below; a later one wins.

    Exits with 0 when every attempt was graded, 1 when the run failed or is incomplete, 2 for a wrong request, 130 if interrupted.
    """
    overrides: dict[str, Any] = {
        "tasks.domains": split_list(domains),
        "tasks.split": split,
        "tasks.limit": limit,
        "rollout.num_samples": num_samples,
        "rollout.greedy": greedy,
        "rollout.concurrency": concurrency,
        "policy.kind": policy,
        "policy.url": url,
        "policy.model": model,
        "policy.sampling.temperature": temperature,
        "policy.sampling.top_p": top_p,
        "policy.sampling.top_k": top_k,
        "chat.tokenizer": tokenizer,
        "chat.protocol": protocol,
        "limits.max_steps": max_steps,
        **user_overrides(user_model),
        "name": name,
        "output": None if output is None else str(output),
        "resume": resume,
        "seed": seed,
        "launch.address": address,
        "launch.inline": inline,
        "launch.detach": detach,
    }
    chosen = load(EvalConfig, config, sets or (), overrides)
    if dry_run:
        print_plan(chosen, as_json=as_json)
    else:
        raise typer.Exit(_run(chosen, as_json=as_json))


def _run(config: EvalConfig, *, as_json: bool) -> int:
    file = run_path(config) / "report.json"
    before = _written(file)
    code = carry_out(config, as_json=as_json)
    if config.launch.detach:
        return code
    if _written(file) != before:  # a run that broke early leaves the report of an earlier start as it was
        report = read_report(file)
        if as_json:
            console.emit_json(report)
        else:
            print_report(report)
    return code


def _written(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None
