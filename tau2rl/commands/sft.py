"""`tau2rl sft`: options -> config -> launch -> what was learned."""

from __future__ import annotations

from typing import Annotated, Any

from tau2rl.commands.options import (
    Address,
    ConfigFile,
    Detach,
    Device,
    DryRun,
    InitialModel,
    Inline,
    Json,
    LoraRank,
    Name,
    Output,
    Resume,
    Sets,
    Steps,
    run_settings,
    split_list,
)
from tau2rl.commands.run import run
from tau2rl.commands.setting import RUN, TRAINING, WHERE, options_of
from tau2rl.commands.training import print_report
from tau2rl.config import SftConfig, load

DATA = "The data"
option = options_of(SftConfig)


def fine_tune(
    config: ConfigFile = None,
    sets: Sets = None,
    data: Annotated[
        list[str] | None, option("data.files", "--data", DATA, "FILES", "JSONL files of rows; separated by commas or repeated.")
    ] = None,
    max_tokens: Annotated[int | None, option("data.max_tokens", "--max-tokens", DATA, "N")] = None,
    model: InitialModel = None,
    lora_rank: LoraRank = None,
    steps: Steps = None,
    batch_size: Annotated[int | None, option("train.batch_size", "--batch-size", TRAINING, "N")] = None,
    lr: Annotated[float | None, option("train.lr", "--lr", TRAINING, "X")] = None,
    backend: Annotated[str | None, option("backend", "--backend", WHERE, "NAME")] = None,
    device: Device = None,
    name: Name = None,
    output: Output = None,
    resume: Resume = None,
    seed: Annotated[int | None, option("seed", "--seed", RUN, "N", "Of the order of rows and of random weights.")] = None,
    address: Address = None,
    inline: Inline = None,
    detach: Detach = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train on conversations: whole ones, with a loss on what the assistant said and on nothing else.

    The checkpoint is in `checkpoints/final` of the run folder, as `from_pretrained` reads it, with its tokenizer.
    Settings come from the config file, then --set, then the options below; a later one wins.

    Exits with 0 when training ended, 1 when the run failed, 2 for a wrong request, 130 if interrupted.
    """
    overrides: dict[str, Any] = {
        "data.files": split_list(data),
        "data.max_tokens": max_tokens,
        "model.init": model,
        "local.lora.rank": lora_rank,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "backend": backend,
        "local.device": device,
        **run_settings(name, output, resume, seed, address, inline, detach),
    }
    run(load(SftConfig, config, sets or (), overrides), print_report, dry_run=dry_run, as_json=as_json)
