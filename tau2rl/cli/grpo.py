"""`tau2rl grpo`: options -> config -> launch -> what was learned."""

from __future__ import annotations

from typing import Annotated, Any

from tau2rl.cli.options import (
    MODEL,
    TRAINING,
    WHAT,
    WHERE,
    Address,
    ConfigFile,
    Detach,
    Device,
    Domains,
    DryRun,
    InitialModel,
    Inline,
    Json,
    Limit,
    LoraRank,
    Name,
    Output,
    Resume,
    Seed,
    Sets,
    Steps,
    TrainSplit,
    UserModel,
    options_of,
    run_settings,
    tasks_settings,
    user_settings,
)
from tau2rl.cli.run import run
from tau2rl.cli.sft import print_report
from tau2rl.config import GrpoConfig, load

option = options_of(GrpoConfig)


def reinforce(
    config: ConfigFile = None,
    sets: Sets = None,
    domains: Domains = None,
    split: TrainSplit = None,
    limit: Limit = None,
    group_size: Annotated[int | None, option("rollout.num_samples", "--group-size", WHAT, "N")] = None,
    tasks_per_step: Annotated[int | None, option("train.tasks_per_step", "--tasks-per-step", WHAT, "N")] = None,
    model: InitialModel = None,
    lora_rank: LoraRank = None,
    temperature: Annotated[
        float | None, option("sampling.temperature", "--temperature", MODEL, "X", "At which episodes are sampled.")
    ] = None,
    steps: Steps = None,
    lr: Annotated[float | None, option("train.lr", "--lr", TRAINING, "X")] = None,
    estimator: Annotated[str | None, option("algo.estimator", "--estimator", TRAINING, "NAME")] = None,
    preset: Annotated[str | None, option("reward.preset", "--reward", TRAINING, "PRESET", "How grades become scores.")] = None,
    user_model: UserModel = None,
    backend: Annotated[str | None, option("backend", "--backend", WHERE, "NAME")] = None,
    device: Device = None,
    name: Name = None,
    output: Output = None,
    resume: Resume = None,
    seed: Seed = None,
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
        **tasks_settings(domains, split, limit),
        "rollout.num_samples": group_size,
        "train.tasks_per_step": tasks_per_step,
        "model.init": model,
        "local.lora.rank": lora_rank,
        "sampling.temperature": temperature,
        "train.steps": steps,
        "train.lr": lr,
        "algo.estimator": estimator,
        "reward.preset": preset,
        **user_settings(user_model),
        "backend": backend,
        "local.device": device,
        **run_settings(name, output, resume, seed, address, inline, detach),
    }
    run(load(GrpoConfig, config, sets or (), overrides), print_report, dry_run=dry_run, as_json=as_json)
