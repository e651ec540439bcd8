"""`tau2rl top`: a run while it goes on, or as it ended, redrawn in the terminal; `--once` prints one frame."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tau2rl import console
from tau2rl.config.extras import refuse_command
from tau2rl.errors import UserError
from tau2rl.report.tables import number

if TYPE_CHECKING:
    from tau2rl.policy.sglang_load import ServerLoad
    from tau2rl.view.top import Frame

Piece = tuple[str, str]  # text and its style
BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 40
FEW, MANY = 8, 100  # episodes in a frame that is printed, and in the table of the dashboard
STYLES = {"running": "bold green", "finished": "bold", "incomplete": "bold yellow", "cut off": "bold red", "not begun": "dim"}
HEAD = ("episode", "result", "reward", "turns", "tokens", "seconds", "ended by", "fault")


def top(
    run: Annotated[Path, typer.Argument(help="A run folder, or a pipeline's.", metavar="RUN_DIR", show_default=False)],
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end; needs no terminal.")] = False,
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks.", min=0.2)] = 2.0,
) -> None:
    """Watch a run in the terminal: progress, success with its interval, servers, curves, the last conversations.

    It reads the run folder, and while the run goes on asks its servers; nothing is changed but the index of its records.
    """
    from tau2rl.view.top import Watch

    if once:
        console.emit_styled(asyncio.run(_once(run)))
        return
    if not run.is_dir():
        raise UserError(f"`{run}` is not a folder", hint="name a run folder; `tau2rl runs` lists those of the outputs folder")
    if not sys.stdout.isatty():
        raise UserError("the dashboard needs a terminal", hint=f"`tau2rl top {run} --once` prints one frame")
    refuse_command("tau2rl top")
    from tau2rl.cli.dashboard import Dashboard

    watch = Watch(run, episodes=MANY)
    Dashboard(watch, every=every).run()


async def _once(run: Path) -> list[Piece]:
    from tau2rl.view.top import Watch

    watch = Watch(run, episodes=FEW)
    try:
        frame = await watch.frame()
        while frame.reading < 1.0:
            before = frame.reading
            frame = await watch.frame(seconds=5.0)
            if frame.reading == before:  # a line that is being written
                break
        return [*top_lines(frame), *_listed(frame)]
    finally:
        await watch.aclose()


def top_lines(frame: Frame) -> list[Piece]:
    """A frame as text without its episodes; each piece in a style of rich's."""
    return [
        (f"{frame.name}  ", "bold"), (f"{frame.stage}  ", ""), (frame.state, STYLES[frame.state]),
        (_how_to_go_on(frame), "dim"), (f"  {frame.run}\n", "dim"),
        *_row("pipeline", [(f"{each.name} {each.state}{', ' if each.says else ''}{each.says}", "") for each in frame.pipeline]),
        *_row("progress", _progress(frame)),
        *_row("success", _success(frame)),
        *_row("servers", [(_load(who, load), "") for who, load in frame.servers.items()]),
        *_row("GPUs", [(f"{each.name}: {each.busy:>3}% busy, {each.used / 1024:.1f} of {each.total / 1024:.1f} GiB", "")
                       for each in frame.gpus]),
        *_row("alarms", [(f"{name} since step {step}", "bold red") for name, step in frame.alarms.items()]),
        *_row("curves", [(f"{name:<18} {sparkline(values):<{CURVE_WIDTH}} {values[0]:.3g} -> {values[-1]:.3g}", "")
                         for name, values in frame.curves.items()]),
        *_row("warnings", [(line, "yellow") for line in frame.warnings]),
    ]  # fmt: skip


def cells(row: Mapping[str, Any]) -> list[str]:
    """An episode as a row below `HEAD`."""
    part = "" if row["place"] == "run" else f" ({row['place']})"
    return [
        f"{row['key']}{part}", row["status"], number(row["reward"]), str(row["turns"]), str(row["tokens"]),
        f"{row['seconds'] or 0:.1f}", row["reason"], row["fault"] or "-",
    ]  # fmt: skip


def sparkline(values: Sequence[float], width: int = CURVE_WIDTH) -> str:
    """Values as blocks between the least and the greatest of them; where there are more than `width`, their means.

    >>> sparkline([0.0, 0.5, 1.0]), sparkline([2.0, 2.0]), sparkline([0.0, 2.0, 7.0, 7.0], width=2)
    ('▁▅█', '▁▁', '▁█')
    """
    count = min(width, len(values))
    parts = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    steps = [round((mean - low) / (high - low) * (len(BLOCKS) - 1)) if high > low else 0 for mean in means]
    return "".join(BLOCKS[step] for step in steps)


def _row(name: str, values: Sequence[Piece]) -> Iterator[Piece]:
    """A name and its values, one below the other; nothing where there are none."""
    for place, (text, style) in enumerate(values):
        yield f"{'' if place else name:<10}", "cyan"
        yield f"{text}\n", style


def _progress(frame: Frame) -> list[Piece]:
    event = frame.progress
    if event is None:
        return []
    if frame.state != "running":  # nothing is in flight, and nobody works on what is left
        return [(console.progress_words(replace(event, before=event.done)), "")]
    flying = "" if event.in_flight is None else f", {event.in_flight} in flight"
    return [(console.progress_words(event) + flying, "")]


def _success(frame: Frame) -> list[Piece]:
    reading = [] if frame.reading >= 1.0 else [(f"reading records: {frame.reading:.0%}", "dim")]
    if frame.pass_1 is None or frame.pass_1.get("value") is None:
        return reading
    interval = "" if not frame.pass_1.get("ci95") else " [{:.3f}, {:.3f}]".format(*frame.pass_1["ci95"])
    floor = "" if frame.floor is None else f", floor {frame.floor:.3f}"
    name = "pass@1" if frame.stage != "grpo" else "over all steps so far"  # of which each has another model
    return [(f"{name} {frame.pass_1['value']:.3f}{interval}, {frame.counts}{floor}", ""), *reading]


def _load(who: str, load: ServerLoad | None) -> str:
    if load is None:
        return f"{who}: does not say"
    engines = "" if load.engines == 1 else f"{load.engines} engines, "
    return f"{who}: {engines}{load.running} running, {load.waiting} waiting, {load.memory:.0%} of its KV memory"


def _how_to_go_on(frame: Frame) -> str:
    return "; `--resume` goes on" if frame.state in ("incomplete", "cut off") else ""


def _listed(frame: Frame) -> Iterator[Piece]:
    if not frame.episodes:
        return
    table = [HEAD, *(cells(row) for row in frame.episodes)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    yield "\n", ""
    for place, row in enumerate(table):
        text = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        yield text + "\n", "" if place else "bold"
