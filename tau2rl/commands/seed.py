"""`tau2rl seed`: options -> config -> launch -> what was written."""

from __future__ import annotations

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
from tau2rl.config import SeedConfig, load


def option(name: str, flag: str, panel: str, metavar: str, note: str = "") -> Any:
    """An option of one of this stage's settings."""
    return setting(name, flag, panel=panel, metavar=metavar, note=note, config=SeedConfig)


def demonstrate(
    config: ConfigFile = None,
    sets: Sets = None,
    domains: Domains = None,
    split: Annotated[str | None, option("tasks.split", "--task-split", WHAT, "NAME")] = None,
    limit: Limit = None,
    num_samples: Annotated[int | None, option("rollout.num_samples", "--num-samples", WHAT, "N")] = None,
    keep: Annotated[str | None, option("keep", "--keep", WHAT, "WHICH")] = None,
    slip: Annotated[float | None, option("slip", "--slip", WHAT, "SHARE")] = None,
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
    """Write demonstrations: a policy that can solve the tasks plays them, and its conversations become dataset rows.

    `rows.jsonl` in the run folder has OpenAI `messages` and `tools`; the environment, its tools and its grades are real.
    Settings come from the config file, then --set, then the options below; a later one wins.

    Exits with 0 when every attempt was graded, 1 when the run failed or is incomplete, 2 for a wrong request, 130 if interrupted.
    """
    overrides: dict[str, Any] = {
        "tasks.domains": split_list(domains),
        "tasks.split": split,
        "tasks.limit": limit,
        "rollout.num_samples": num_samples,
        "rollout.concurrency": concurrency,
        "keep": keep,
        "slip": slip,
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
    run(load(SeedConfig, config, sets or (), overrides), dry_run=dry_run, as_json=as_json)
