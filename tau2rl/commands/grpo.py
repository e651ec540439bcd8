"""`tau2rl grpo`: options -> config -> launch -> what was learned."""

from __future__ import annotations

from typing import Annotated, Any

from tau2rl.commands.dataset import Address, Detach, DryRun, Inline, Name, Output, Resume
from tau2rl.commands.options import (
    CUSTOMER,
    RUN,
    WHAT,
    WHERE,
    ConfigFile,
    Domains,
    Json,
    Limit,
    Sets,
    setting,
    split_list,
    user_overrides,
)
from tau2rl.commands.sft import MODEL, TRAINING, run_overrides
from tau2rl.commands.training import run
from tau2rl.config import GrpoConfig, load


def option(name: str, flag: str, panel: str, metavar: str, note: str = "") -> Any:
    """An option of one of this stage's settings."""
    return setting(name, flag, panel=panel, metavar=metavar, note=note, config=GrpoConfig)


def reinforce(
    config: ConfigFile = None,
    sets: Sets = None,
    domains: Domains = None,
    split: Annotated[str | None, option("tasks.split", "--task-split", WHAT, "NAME")] = None,
    limit: Limit = None,
    group_size: Annotated[int | None, option("rollout.num_samples", "--group-size", WHAT, "N")] = None,
    tasks_per_step: Annotated[int | None, option("train.tasks_per_step", "--tasks-per-step", WHAT, "N")] = None,
    model: Annotated[str | None, option("model.init", "--model", MODEL, "DIR")] = None,
    lora_rank: Annotated[int | None, option("local.lora.rank", "--lora-rank", MODEL, "N")] = None,
    temperature: Annotated[
        float | None, option("sampling.temperature", "--temperature", MODEL, "X", "At which episodes are sampled.")
    ] = None,
    steps: Annotated[int | None, option("train.steps", "--steps", TRAINING, "N")] = None,
    lr: Annotated[float | None, option("train.lr", "--lr", TRAINING, "X")] = None,
    estimator: Annotated[str | None, option("algo.estimator", "--estimator", TRAINING, "NAME")] = None,
    preset: Annotated[str | None, option("reward.preset", "--reward", TRAINING, "PRESET", "How grades become scores.")] = None,
    user_model: Annotated[
        str | None,
        option("user.model", "--user-model", CUSTOMER, "NAME", "litellm model that plays the customer, or `scripted` for none."),
    ] = None,
    backend: Annotated[str | None, option("backend", "--backend", WHERE, "NAME")] = None,
    device: Annotated[str | None, option("local.device", "--device", WHERE, "NAME")] = None,
    name: Name = None,
    output: Output = None,
    resume: Resume = None,
    seed: Annotated[int | None, option("seed", "--seed", RUN, "N", "Every attempt's own seed is derived from it.")] = None,
    address: Address = None,
    inline: Inline = None,
    detach: Detach = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Reinforce what works: play groups of attempts at training tasks and move the weights towards the better ones.

    Curves are in `metrics.jsonl` of the run folder, the checkpoint in `checkpoints/final`.
    Settings come from the config file, then --set, then the options below; a later one wins.

    Exits with 0 when training ended, 1 when the run failed or gave up, 2 for a wrong request, 130 if interrupted.
    """
    overrides: dict[str, Any] = {
        "tasks.domains": split_list(domains),
        "tasks.split": split,
        "tasks.limit": limit,
        "rollout.num_samples": group_size,
        "train.tasks_per_step": tasks_per_step,
        "model.init": model,
        "local.lora.rank": lora_rank,
        "sampling.temperature": temperature,
        "train.steps": steps,
        "train.lr": lr,
        "algo.estimator": estimator,
        "reward.preset": preset,
        **user_overrides(user_model),
        "backend": backend,
        "local.device": device,
        **run_overrides(name, output, resume, seed, address, inline, detach),
    }
    run(load(GrpoConfig, config, sets or (), overrides), dry_run=dry_run, as_json=as_json)
