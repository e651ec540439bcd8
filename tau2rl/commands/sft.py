"""`tau2rl sft`: options -> config -> launch -> what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tau2rl.commands.dataset import Address, Detach, DryRun, Inline, Name, Output, Resume
from tau2rl.commands.options import RUN, WHERE, ConfigFile, Json, Sets, setting, split_list
from tau2rl.commands.training import run
from tau2rl.config import SftConfig, load

DATA, MODEL, TRAINING = "The data", "The model", "The training"


def option(name: str, flag: str, panel: str, metavar: str, note: str = "") -> Any:
    """An option of one of this stage's settings."""
    return setting(name, flag, panel=panel, metavar=metavar, note=note, config=SftConfig)


def fine_tune(
    config: ConfigFile = None,
    sets: Sets = None,
    data: Annotated[
        list[str] | None, option("data.files", "--data", DATA, "FILES", "JSONL files of rows; separated by commas or repeated.")
    ] = None,
    max_tokens: Annotated[int | None, option("data.max_tokens", "--max-tokens", DATA, "N")] = None,
    model: Annotated[str | None, option("model.init", "--model", MODEL, "DIR")] = None,
    lora_rank: Annotated[int | None, option("local.lora.rank", "--lora-rank", MODEL, "N")] = None,
    steps: Annotated[int | None, option("train.steps", "--steps", TRAINING, "N")] = None,
    batch_size: Annotated[int | None, option("train.batch_size", "--batch-size", TRAINING, "N")] = None,
    lr: Annotated[float | None, option("train.lr", "--lr", TRAINING, "X")] = None,
    backend: Annotated[str | None, option("backend", "--backend", WHERE, "NAME")] = None,
    device: Annotated[str | None, option("local.device", "--device", WHERE, "NAME")] = None,
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
        **run_overrides(name, output, resume, seed, address, inline, detach),
    }
    run(load(SftConfig, config, sets or (), overrides), dry_run=dry_run, as_json=as_json)


def run_overrides(
    name: str | None,
    output: Path | None,
    resume: bool | None,
    seed: int | None,
    address: str | None,
    inline: bool | None,
    detach: bool | None,
) -> dict[str, Any]:
    """The settings behind the options that every run has."""
    return {
        "name": name,
        "output": None if output is None else str(output),
        "resume": resume,
        "seed": seed,
        "launch.address": address,
        "launch.inline": inline,
        "launch.detach": detach,
    }
