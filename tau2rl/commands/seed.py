"""`tau2rl seed`: options -> config -> launch -> what was written."""

from __future__ import annotations

from typing import Annotated, Any

from tau2rl.commands.dataset import print_report
from tau2rl.commands.options import (
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
    run_settings,
    tasks_settings,
    user_settings,
)
from tau2rl.commands.run import run
from tau2rl.commands.setting import AGENT, WHAT, options_of
from tau2rl.config import SeedConfig, load
from tau2rl.store.run import run_path

option = options_of(SeedConfig)


def demonstrate(
    config: ConfigFile = None,
    sets: Sets = None,
    domains: Domains = None,
    split: TrainSplit = None,
    limit: Limit = None,
    num_samples: Annotated[int | None, option("rollout.num_samples", "--num-samples", WHAT, "N")] = None,
    keep: Annotated[str | None, option("keep", "--keep", WHAT, "WHICH")] = None,
    slip: Annotated[float | None, option("slip", "--slip", WHAT, "SHARE")] = None,
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
        "slip": slip,
        **agent_settings(policy, url, model, temperature, tokenizer, protocol),
        **user_settings(user_model),
        **run_settings(name, output, resume, seed, address, inline, detach),
    }
    chosen = load(SeedConfig, config, sets or (), overrides)
    run(chosen, lambda report: print_report(report, run_path(chosen)), dry_run=dry_run, as_json=as_json)
