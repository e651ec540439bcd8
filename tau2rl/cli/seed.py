"""What `tau2rl seed` and `tau2rl rft-filter` print: the table of a dataset's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from tau2rl import console
from tau2rl.cli.options import (
    AGENT,
    WHAT,
    Address,
    Concurrency,
    ConfigFile,
    Detach,
    Domains,
    DryRun,
    Inline,
    Json,
    Limit,
    Name,
    Output,
    PolicyModel,
    PolicyUrl,
    Resume,
    Seed,
    Sets,
    Temperature,
    Tokenizer,
    TrainSplit,
    UserModel,
    agent_settings,
    options_of,
    run_settings,
    tasks_settings,
    user_settings,
)
from tau2rl.cli.run import run, shown
from tau2rl.config import SeedConfig, load
from tau2rl.report.tables import cost_words
from tau2rl.runs.folder import run_path

option = options_of(SeedConfig)


def demonstrate(
    config: ConfigFile = None,
    sets: Sets = None,
    domains: Domains = None,
    split: TrainSplit = None,
    limit: Limit = None,
    num_samples: Annotated[int | None, option("rollout.num_samples", "--num-samples", WHAT, "N")] = None,
    keep: Annotated[str | None, option("keep", "--keep", WHAT, "WHICH")] = None,
    noise_prob: Annotated[float | None, option("noise_prob", "--noise-prob", WHAT, "SHARE")] = None,
    policy: Annotated[str | None, option("policy.kind", "--policy", AGENT, "KIND")] = None,
    url: PolicyUrl = None,
    model: PolicyModel = None,
    temperature: Temperature = None,
    tokenizer: Tokenizer = None,
    protocol: Annotated[str | None, option("chat.protocol", "--protocol", AGENT, "NAME")] = None,
    user_model: UserModel = None,
    name: Name = None,
    output: Output = None,
    resume: Resume = None,
    seed: Seed = None,
    concurrency: Concurrency = None,
    address: Address = None,
    inline: Inline = None,
    detach: Detach = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write demonstrations: a policy that can solve the tasks plays them, and its conversations become dataset rows.

    `rows.jsonl` in the run folder has OpenAI `messages` and `tools`; the environment, its tools and its grades are real.
    Settings come from the config file, then --set, then the options below; a later one wins.

    Exits with 0 when every attempt was graded, 1 when the run failed or is incomplete, 2 for a wrong request, 130 if interrupted.
    """
    overrides: dict[str, Any] = {
        **tasks_settings(domains, split, limit),
        "rollout.num_samples": num_samples,
        "rollout.concurrency": concurrency,
        "keep": keep,
        "noise_prob": noise_prob,
        **agent_settings(policy, url, model, temperature, tokenizer, protocol),
        **user_settings(user_model),
        **run_settings(name, output, resume, seed, address, inline, detach),
    }
    chosen = load(SeedConfig, config, sets or (), overrides)
    run(chosen, lambda report: print_report(report, run_path(chosen)), dry_run=dry_run, as_json=as_json)


def print_report(report: Mapping[str, Any], folder: Path) -> None:
    """Kept of tried, by domain; below it why the others were left out, the floor, and the files."""
    head = ["domain", "tried", "solved", "kept", "tasks", "covered", "floor"]
    rows = [
        [name, *(str(part[key]) for key in ("tried", "solved", "kept", "tasks", "covered")), _floor(report["floor"].get(name))]
        for name, part in report["domains"].items()
    ]
    console.emit_table([head, *rows])
    if report["dropped"]:
        console.emit("left out: " + ", ".join(f"{count} {reason}" for reason, count in report["dropped"].items()))
    kinds, tasks = report["diversity"]["kinds"], report["diversity"]["tasks"]
    console.emit(
        f"diversity of what is kept: {kinds['distinct']} kinds, as even as {kinds['effective']:g}; "
        f"{tasks['distinct']} tasks, as even as {tasks['effective']:g}"
    )
    for name, file in report["files"].items():
        console.emit(f"{shown(folder / name)}: {file['rows']} rows, sha256 {file['sha256'][:16]}")
    if cost := report.get("cost"):
        console.emit(f"cost: {cost_words(cost)}")
    if report["incomplete"]:
        console.emit("incomplete: not every attempt was graded")


def _floor(floor: Mapping[str, float | None] | None) -> str:
    """The best of the constant policies."""
    known = [value for value in (floor or {}).values() if value is not None]
    return f"{max(known):.3f}" if known else "-"
