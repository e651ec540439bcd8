"""`tau2rl rft-filter`: options -> config -> launch -> what was kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tau2rl.commands.dataset import Address, Concurrency, Detach, DryRun, Inline, Name, Output, Resume, Seed, run
from tau2rl.commands.options import (
    AGENT,
    CUSTOMER,
    WHAT,
    ConfigFile,
    Domains,
    Json,
    Limit,
    Sets,
    setting,
    split_list,
    user_overrides,
)
from tau2rl.config import RftConfig, load

KEEP = "What is kept"


def option(name: str, flag: str, panel: str, metavar: str | None, note: str = "") -> Any:
    """An option of one of this stage's settings."""
    return setting(name, flag, panel=panel, metavar=metavar, note=note, config=RftConfig)


def rejection_sample(
    config: ConfigFile = None,
    sets: Sets = None,
    sources: Annotated[
        list[Path] | None,
        option("sources", "--from", WHAT, "RUN_DIR", "Filter the episodes of this run and sample none; repeat for more."),
    ] = None,
    domains: Domains = None,
    split: Annotated[str | None, option("tasks.split", "--task-split", WHAT, "NAME")] = None,
    limit: Limit = None,
    num_samples: Annotated[int | None, option("rollout.num_samples", "--num-samples", WHAT, "N")] = None,
    per_task: Annotated[int | None, option("keep.per_task", "--per-task", KEEP, "N")] = None,
    per_kind: Annotated[int | None, option("keep.per_kind", "--per-kind", KEEP, "N")] = None,
    per_domain: Annotated[int | None, option("keep.per_domain", "--per-domain", KEEP, "N")] = None,
    partial_backoff: Annotated[float | None, option("keep.partial_backoff", "--partial-backoff", KEEP, "X")] = None,
    dedupe: Annotated[bool | None, option("keep.dedupe", "--dedupe/--no-dedupe", KEEP, None)] = None,
    exclude_no_op: Annotated[bool | None, option("keep.exclude_no_op", "--exclude-no-op/--include-no-op", KEEP, None)] = None,
    policy: Annotated[str | None, option("policy.kind", "--policy", AGENT, "KIND")] = None,
    url: Annotated[str | None, option("policy.url", "--url", AGENT, "URL")] = None,
    model: Annotated[str | None, option("policy.model", "--model", AGENT, "NAME")] = None,
    temperature: Annotated[float | None, option("policy.sampling.temperature", "--temperature", AGENT, "X")] = None,
    tokenizer: Annotated[str | None, option("chat.tokenizer", "--tokenizer", AGENT, "DIR")] = None,
    protocol: Annotated[str | None, option("chat.protocol", "--protocol", AGENT, "NAME")] = None,
    user_model: Annotated[
        str | None,
        option("user.model", "--user-model", CUSTOMER, "NAME", "litellm model that plays the customer, or `scripted` for none."),
    ] = None,
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
    """Keep the attempts that solved their task: sampled here, or taken from earlier runs with `--from`.

    `sft.jsonl` in the run folder has what is kept, with the tokens as they were sampled; `dropped.jsonl` the rest, with reasons.
    Settings come from the config file, then --set, then the options below; a later one wins.

    Exits with 0 when it is done, 1 when the run failed or is incomplete, 2 for a wrong request, 130 if interrupted.
    """
    overrides: dict[str, Any] = {
        "sources": [str(source) for source in sources] if sources else None,
        "tasks.domains": split_list(domains),
        "tasks.split": split,
        "tasks.limit": limit,
        "rollout.num_samples": num_samples,
        "rollout.concurrency": concurrency,
        "keep.per_task": per_task,
        "keep.per_kind": per_kind,
        "keep.per_domain": per_domain,
        "keep.partial_backoff": partial_backoff,
        "keep.dedupe": dedupe,
        "keep.exclude_no_op": exclude_no_op,
        "policy.kind": policy,
        "policy.url": url,
        "policy.model": model,
        "policy.sampling.temperature": temperature,
        "chat.tokenizer": tokenizer,
        "chat.protocol": protocol,
        **user_overrides(user_model),
        "name": name,
        "output": None if output is None else str(output),
        "resume": resume,
        "seed": seed,
        "launch.address": address,
        "launch.inline": inline,
        "launch.detach": detach,
    }
    run(load(RftConfig, config, sets or (), overrides), dry_run=dry_run, as_json=as_json)
