"""`tau2rl bench`: the benchmarks of `scripts/benchmarks/`, one after the other, with the table of each."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import tau2rl
from tau2rl import console
from tau2rl.commands.options import Json
from tau2rl.errors import UserError

FOLDER = Path(tau2rl.__file__).parents[1] / "scripts" / "benchmarks"
SUITE = ("env_cost", "length", "rollouts", "rollouts_400", "scale", "rft", "local")  # other files there are parts of these


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="Which; all when none is named.", metavar="NAME", show_default=False)
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Say what each measures, and measure nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Measure what this machine gets out of the environments, the rollouts, the filter and the local trainer.

    Each benchmark prints one table. Nothing is downloaded; servers are stubs on 127.0.0.1. All of them take minutes of an idle
    machine; on a busy one only CPU times mean anything.

    They are scripts of the repository, not of the installed package, and have options of their own:
    `python scripts/benchmarks/NAME.py --help`.

    Exits with 1 when a benchmark breaks; the others are run all the same.
    """
    suite = find_suite(FOLDER, names or ())
    if listing:
        show_list(suite, as_json=as_json)
        return
    results: list[dict[str, Any]] = []
    for name, file in suite.items():
        console.say(f"{name}: {summary(file)}")
        result = measure(name, file)
        results.append(result)
        if not as_json:
            show(result)
    if as_json:
        console.emit_json(results)
    if broken := [result["name"] for result in results if result["exit_code"]]:
        console.say(f"broke: {', '.join(broken)}")
        raise typer.Exit(1)


def find_suite(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Name -> script, of those named or of all, in the order of the suite. Raises UserError."""
    if not folder.is_dir():
        raise UserError(
            "the benchmarks are scripts of the repository, and this is an installed package",
            hint="clone the repository, `pip install -e .` there, and run `tau2rl bench` again",
        )
    suite = {name: folder / f"{name}.py" for name in SUITE}
    if unknown := [name for name in names if name not in suite]:
        raise UserError(f"no such benchmark `{unknown[0]}`", hint=f"one of: {', '.join(suite)}")
    chosen = {name: file for name, file in suite.items() if not names or name in names}
    if lost := [file for file in chosen.values() if not file.exists()]:
        raise UserError(f"the benchmark `{lost[0].stem}` is not there", hint=f"`{lost[0]}` belongs to the repository")
    return chosen


def show_list(suite: dict[str, Path], *, as_json: bool) -> None:
    """Each benchmark with the first sentence of its script."""
    rows = [{"name": name, "measures": summary(file), "script": str(file)} for name, file in suite.items()]
    if as_json:
        console.emit_json(rows)
    else:
        console.emit_table([["name", "measures"], *([row["name"], row["measures"]] for row in rows)])


def summary(file: Path) -> str:
    """What a script says of itself in the first line of its docstring, without the command that may follow there."""
    said = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return said.partition("\n")[0].partition(": `python")[0].rstrip(".:")


def measure(name: str, file: Path) -> dict[str, Any]:
    """Run a script in a process of its own; what it says on the way goes to stderr. Its tables, and its other lines."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, str(file)], stdout=subprocess.PIPE, text=True, check=False)
    tables, lines = read_tables(done.stdout)
    return {
        "name": name,
        "exit_code": done.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "lines": lines,
        "tables": tables,
    }


def show(result: dict[str, Any]) -> None:
    """One benchmark's lines and tables."""
    console.emit("\n".join((f"{result['name']}, {result['seconds']:g} s", *result["lines"])))
    for table in result["tables"]:
        console.emit_table([table["columns"], *table["rows"]])


def read_tables(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The Markdown tables of a text, and its other lines.

    >>> read_tables("idle\\n| how | wall s |\\n| --- | --- |\\n| alone | 9.5 |")
    ([{'columns': ['how', 'wall s'], 'rows': [['alone', '9.5']]}], ['idle'])
    """
    tables: list[dict[str, Any]] = []
    others: list[str] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            others += [line] if line.strip() else []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not inside:
            tables.append({"columns": cells, "rows": []})
            inside = True
        elif any(cell.strip("-:") for cell in cells):
            tables[-1]["rows"].append(cells)
    return tables, others
