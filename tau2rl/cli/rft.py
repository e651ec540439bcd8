"""`tau2rl rft-filter`: options -> config -> launch -> what was kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    NumSamples,
    Output,
    Policy,
    PolicyModel,
    PolicyUrl,
    Protocol,
    Resume,
    Seed,
    Sets,
    Tokenizer,
    TrainSplit,
    UserModel,
    agent_settings,
    options_of,
    run_settings,
    tasks_settings,
    user_settings,
)
from tau2rl.cli.run import run
from tau2rl.cli.seed import print_report
from tau2rl.config import RftConfig, load
from tau2rl.runs.folder import run_path

KEEP = "What is kept"
option = options_of(RftConfig)


def rejection_sample(
    config: ConfigFile = None,
    sets: Sets = None,
    sources: Annotated[
        list[Path] | None,
        option("sources", "--from", WHAT, "RUN_DIR", "Filter the episodes of this run and sample none; repeat for more."),
    ] = None,
    domains: Domains = None,
    split: TrainSplit = None,
    limit: Limit = None,
    num_samples: NumSamples = None,
    per_task: Annotated[int | None, option("keep.per_task", "--per-task", KEEP, "N")] = None,
    per_kind: Annotated[int | None, option("keep.per_kind", "--per-kind", KEEP, "N")] = None,
    per_domain: Annotated[int | None, option("keep.per_domain", "--per-domain", KEEP, "N")] = None,
    partial_backoff: Annotated[float | None, option("keep.partial_backoff", "--partial-backoff", KEEP, "X")] = None,
    dedupe: Annotated[bool | None, option("keep.dedupe", "--dedupe/--no-dedupe", KEEP)] = None,
    exclude_no_op: Annotated[bool | None, option("keep.exclude_no_op", "--exclude-no-op/--include-no-op", KEEP)] = None,
    policy: Policy = None,
    url: PolicyUrl = None,
    model: PolicyModel = None,
    temperature: Annotated[float | None, option("policy.sampling.temperature", "--temperature", AGENT, "X")] = None,
    tokenizer: Tokenizer = None,
    protocol: Protocol = None,
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
    """Keep the attempts that solved their task: sampled here, or taken from earlier runs with `--from`.

    `sft.jsonl` in the run folder has what is kept, with the tokens as they were sampled; `dropped.jsonl` the rest, with reasons.
    Settings come from the config file, then --set, then the options below; a later one wins.

    Exits with 0 when it is done, 1 when the run failed or is incomplete, 2 for a wrong request, 130 if interrupted.
    """
    overrides: dict[str, Any] = {
        "sources": [str(source) for source in sources] if sources else None,
        **tasks_settings(domains, split, limit),
        "rollout.num_samples": num_samples,
        "rollout.concurrency": concurrency,
        "keep.per_task": per_task,
        "keep.per_kind": per_kind,
        "keep.per_domain": per_domain,
        "keep.partial_backoff": partial_backoff,
        "keep.dedupe": dedupe,
        "keep.exclude_no_op": exclude_no_op,
        **agent_settings(policy, url, model, temperature, tokenizer, protocol),
        **user_settings(user_model),
        **run_settings(name, output, resume, seed, address, inline, detach),
    }
    chosen = load(RftConfig, config, sets or (), overrides)
    run(chosen, lambda report: print_report(report, run_path(chosen)), dry_run=dry_run, as_json=as_json)
