"""What `tau2rl sft` and `tau2rl grpo` print: what was learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from tau2rl import console
from tau2rl.cli.options import (
    RUN,
    TRAINING,
    WHERE,
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
    options_of,
    run_settings,
    split_list,
)
from tau2rl.cli.run import run, shown
from tau2rl.config import SftConfig, load
from tau2rl.report.tables import cost_words

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


def print_report(report: Mapping[str, Any]) -> None:
    """The numbers of the training, what became of the rows, and where the checkpoint is."""
    training = {key: value for key, value in report["training"].items() if not isinstance(value, dict)}
    console.emit_table([["training", ""], *([key.replace("_", " "), _word(value)] for key, value in training.items())])
    if "rows" in report:
        rows = report["rows"]
        console.emit(f"rows: {rows['used']} used, {rows['held_out']} held out, {rows['dropped']} left out")
        if rows.get("exact"):
            console.emit(f"tokens: {rows['exact']} rows as they were sampled, {rows['rendered']} rendered from messages")
        for reason, count in rows["reasons"].items():
            console.emit(f"left out: {count} {reason}")
    for step, value in report["training"].get("validation", {}).items():
        console.emit(f"step {step}: {value:.3f} of the validation tasks solved")
    if cost := report.get("cost"):
        console.emit(f"cost: {cost_words(cost)}")
    checkpoint = report["outputs"]["checkpoint"]
    console.emit(f"{shown(Path(checkpoint['path']))}: sha256 {checkpoint['sha256'][:16]}")


def _word(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
