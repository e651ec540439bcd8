"""`tau2rl bench`: the benchmarks of `scripts/benchmarks/`, one after the other, with the table of each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tau2rl import console, settings
from tau2rl.commands import bench_suite
from tau2rl.commands.bench_suite import QUICK, find_suite, measure, summary
from tau2rl.commands.options import Json
from tau2rl.commands.run import shown
from tau2rl.commands.setting import OUTPUT
from tau2rl.store.files import write_json


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="Which; all when none is named.", metavar="NAME", show_default=False)
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Say what each measures, and measure nothing.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="As long as each script takes by itself, as for the numbers of docs/scale.md.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Folder of the results. (default outputs/bench)", metavar="DIR", rich_help_panel=OUTPUT),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what this machine gets out of the environments, the rollouts, the filter and the local trainer.

    Each benchmark prints its tables. Nothing is downloaded; servers are stubs on 127.0.0.1. All of them take a quarter of an hour
    of an idle machine with two cores, with --full more; on a busy one only CPU times mean anything.

    The results are kept in a file, with the machine, its load, the versions, the commit and the command of each.

    They are scripts of the repository, not of the installed package, and have options of their own:
    `python scripts/benchmarks/NAME.py --help`.

    Exits with 1 when a benchmark breaks; the others are run all the same.
    """
    suite = find_suite(bench_suite.FOLDER, names or ())
    if listing:
        show_list(suite, as_json=as_json)
        return
    file = (output or settings.output_root() / "bench") / time.strftime("%Y%m%d-%H%M%S.json", time.gmtime())
    file.parent.mkdir(parents=True, exist_ok=True)
    head = {"machine": bench_suite.machine(), **bench_suite.stood_on()}
    results: list[dict[str, Any]] = []
    for number, (name, script) in enumerate(suite.items(), 1):
        console.say(f"{number} of {len(suite)}, {name}: {summary(script)}")
        result = measure(name, script, () if full else QUICK.get(name, ()))
        results.append(result)
        write_json(file, {**head, "benchmarks": results})
        if not as_json:
            show(result)
    if as_json:
        console.emit_json(results)
    console.say(f"kept in {shown(file)}")
    if broken := [result["name"] for result in results if result["exit_code"]]:
        console.say(f"broke: {', '.join(broken)}")
        raise typer.Exit(1)


def show_list(suite: dict[str, Path], *, as_json: bool) -> None:
    """Each benchmark with the first sentence of its script."""
    rows = [{"name": name, "measures": summary(file), "script": str(file)} for name, file in suite.items()]
    if as_json:
        console.emit_json(rows)
    else:
        console.emit_table([["name", "measures"], *([row["name"], row["measures"]] for row in rows)])


def show(result: dict[str, Any]) -> None:
    """One benchmark's lines and tables."""
    console.emit("\n".join((f"{result['name']}, {result['seconds']:g} s", *result["lines"])))
    for table in result["tables"]:
        console.emit_table([table["columns"], *table["rows"]])
