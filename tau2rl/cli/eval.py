"""`tau2rl eval`: options -> config -> launch -> the table."""

from __future__ import annotations

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
    Split,
    Temperature,
    Tokenizer,
    UserModel,
    agent_settings,
    options_of,
    run_settings,
    tasks_settings,
    user_settings,
)
from tau2rl.cli.results import print_report
from tau2rl.cli.run import run
from tau2rl.config import EvalConfig, load

option = options_of(EvalConfig)


def evaluate(
    config: ConfigFile = None,
    sets: Sets = None,
    domains: Domains = None,
    split: Split = None,
    limit: Limit = None,
    num_samples: NumSamples = None,
    greedy: Annotated[bool | None, option("rollout.greedy", "--greedy/--no-greedy", WHAT)] = None,
    policy: Policy = None,
    url: PolicyUrl = None,
    model: PolicyModel = None,
    tokenizer: Tokenizer = None,
    protocol: Protocol = None,
    temperature: Temperature = None,
    top_p: Annotated[float | None, option("policy.sampling.top_p", "--top-p", AGENT, "X")] = None,
    top_k: Annotated[int | None, option("policy.sampling.top_k", "--top-k", AGENT, "N")] = None,
    max_steps: Annotated[int | None, option("limits.max_steps", "--max-steps", AGENT, "N")] = None,
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
    """Let a policy play tasks, and say how many it solves: pass@k and pass^k with their intervals and floors.

    Settings come from the config file, then --set, then the options below; a later one wins.

    Exits with 0 when every attempt was graded, 1 when the run failed or is incomplete, 2 for a wrong request, 130 if interrupted.
    """
    overrides: dict[str, Any] = {
        **tasks_settings(domains, split, limit),
        "rollout.num_samples": num_samples,
        "rollout.greedy": greedy,
        "rollout.concurrency": concurrency,
        **agent_settings(policy, url, model, temperature, tokenizer, protocol),
        "policy.sampling.top_p": top_p,
        "policy.sampling.top_k": top_k,
        "limits.max_steps": max_steps,
        **user_settings(user_model),
        **run_settings(name, output, resume, seed, address, inline, detach),
    }
    run(load(EvalConfig, config, sets or (), overrides), print_report, dry_run=dry_run, as_json=as_json)
