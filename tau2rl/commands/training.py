"""What `tau2rl sft` and `tau2rl grpo` print: what was learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tau2rl import console
from tau2rl.commands.run import shown
from tau2rl.metrics.table import cost_words


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
    for step, value in report["training"].get("selection", {}).items():
        console.emit(f"step {step}: {value:.3f} of the selection tasks solved")
    if cost := report.get("cost"):
        console.emit(f"cost: {cost_words(cost)}")
    checkpoint = report["outputs"]["checkpoint"]
    console.emit(f"{shown(Path(checkpoint['path']))}: sha256 {checkpoint['sha256'][:16]}")


def _word(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
