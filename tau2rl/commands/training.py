"""What `tau2rl sft` and `tau2rl grpo` have in common: run it, and say what was learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from tau2rl import console
from tau2rl.commands.run import carry_out, print_plan, shown
from tau2rl.config import GrpoConfig, SftConfig
from tau2rl.store.files import read_json
from tau2rl.store.run import run_path


def run(config: SftConfig | GrpoConfig, *, dry_run: bool, as_json: bool) -> None:
    """Show what would run, or run it and print its report. Raises UserError; ends with the run's exit code."""
    if dry_run:
        print_plan(config, as_json=as_json)
        return
    file = run_path(config) / "report.json"
    before = _written(file)
    code = carry_out(config, as_json=as_json)
    if not config.launch.detach and _written(file) != before:  # a run that broke early leaves an older report as it was
        report = read_json(file)
        if as_json:
            console.emit_json(report)
        else:
            print_report(report)
    raise typer.Exit(code)


def print_report(report: Mapping[str, Any]) -> None:
    """The numbers of the training, what became of the rows, and where the checkpoint is."""
    training = {key: value for key, value in report["training"].items() if not isinstance(value, dict)}
    console.emit_table([["training", ""], *([key.replace("_", " "), _word(value)] for key, value in training.items())])
    if "rows" in report:
        rows = report["rows"]
        console.emit(f"rows: {rows['used']} used, {rows['held_out']} held out, {rows['dropped']} left out")
        for reason, count in rows["reasons"].items():
            console.emit(f"left out: {count} {reason}")
    for step, value in report["training"].get("selection", {}).items():
        console.emit(f"step {step}: {value:.3f} of the selection tasks solved")
    checkpoint = report["outputs"]["checkpoint"]
    console.emit(f"{shown(Path(checkpoint['path']))}: sha256 {checkpoint['sha256'][:16]}")


def _word(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _written(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None
