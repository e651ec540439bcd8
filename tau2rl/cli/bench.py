"""`tau2rl bench`: the benchmarks of `scripts/benchmarks/`, one after the other, with the table of each."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import tau2rl
from tau2rl import console, settings
from tau2rl.cli.options import OUTPUT, Json
from tau2rl.cli.printing import shown
from tau2rl.errors import UserError
from tau2rl.launch.supervisor import kill_below
from tau2rl.runs.files import write_json
from tau2rl.runs.provenance import digest, library_versions, source_revision
from tau2rl.settings import available_cores

FOLDER = Path(tau2rl.__file__).parents[1] / "scripts" / "benchmarks"
LIMIT_SECONDS = 1200.0  # of one benchmark: one that hangs costs its own number and not the suite
TIMED_OUT = 124

# A setting of each with which the suite takes a quarter of an hour on two cores; a script that is not named has no need of one.
QUICK: dict[str, tuple[str, ...]] = {
    "env_cost": ("--episodes", "1", "--repeat", "10"),
    "length": ("--turns", "100"),
    "local": ("--conversations", "16", "--updates", "1"),
    "rft": ("--records", "20000"),
    "rollouts_400": ("--limit", "8"),
    "scale": ("--episodes", "200000"),
    "scheduling": ("--episodes", "200", "--seeds", "1"),
    "slime_generate": ("--in-flight", "8", "32", "128", "--workers", "0", "--seconds", "5", "--warm", "2"),
    "start": ("--rounds", "3", "--jobs", "1"),
    "training": ("--rounds", "1"),
}


def find_suite(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Name -> script, of those named or of all, by the alphabet. Raises UserError.

    A script whose first line names another one of the folder is a part of that.
    """
    if not folder.is_dir():
        raise UserError(
            "the benchmarks are scripts of the repository, and this is an installed package",
            hint="clone the repository, `pip install -e .` there, and run `tau2rl bench` again",
        )
    said = {file: _first_line(file) for file in sorted(folder.glob("*.py"))}
    suite = {file.stem: file for file, line in said.items() if not any(f"`{other.name}`" in line for other in said)}
    if unknown := [name for name in names if name not in suite]:
        raise UserError(f"no such benchmark `{unknown[0]}`", hint=f"one of: {', '.join(suite)}")
    return {name: file for name, file in suite.items() if not names or name in names}


def bench_summary(file: Path) -> str:
    """What a script says of itself in the first line of its docstring, without the command that may follow there."""
    return _first_line(file).partition(": `python")[0].rstrip(".:")


def measure_suite(name: str, file: Path, arguments: Sequence[str], *, limit_seconds: float = LIMIT_SECONDS) -> dict[str, Any]:
    """Run a script in a process of its own; what it says on the way goes to stderr.

    `digest` names what makes the number: the scripts, the arguments, the source's commit, Python and the libraries.
    """
    command = [sys.executable, str(file), *arguments]
    began, load = time.monotonic(), os.getloadavg()[0]
    code, text = _carry_out(command, limit_seconds)
    tables, lines = read_tables(text)
    scripts = {part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in sorted(file.parent.glob("*.py"))}
    return {
        "name": name,
        "command": ["python", str(Path("scripts", "benchmarks", file.name)), *arguments],
        "digest": digest({"scripts": scripts, "arguments": list(arguments), **stood_on()}),
        "exit_code": code,
        "seconds": round(time.monotonic() - began, 1),
        "load_before": round(load, 2),
        "lines": lines,
        "tables": tables,
    }


def stood_on() -> dict[str, Any]:
    """The software that a number depends on."""
    return {"python": platform.python_version(), "source": source_revision(), "libraries": library_versions()}


def machine() -> dict[str, Any]:
    """The machine that a number depends on; not its name."""
    return {"cores": os.cpu_count(), "usable_cores": available_cores(), "processor": _processor(), "system": platform.platform()}


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


def _carry_out(command: Sequence[str], limit_seconds: float) -> tuple[int, str]:
    """Exit code and standard output; a command that overruns is ended with all that is below it, and what it said is kept."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        text, _ = process.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return TIMED_OUT, process.communicate()[0]
    except BaseException:  # Ctrl-C: nothing of it stays behind
        _end(process)
        raise
    return process.returncode, text


def _end(process: subprocess.Popen[str]) -> None:
    kill_below(process.pid)
    process.kill()
    process.wait()


def _first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]


def _processor() -> str:
    """Its model, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


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
    suite = find_suite(FOLDER, names or ())
    if listing:
        show_list(suite, as_json=as_json)
        return
    file = (output or settings.output_root() / "bench") / time.strftime("%Y%m%d-%H%M%S.json", time.gmtime())
    file.parent.mkdir(parents=True, exist_ok=True)
    head = {"machine": machine(), **stood_on()}
    results: list[dict[str, Any]] = []
    for number, (name, script) in enumerate(suite.items(), 1):
        console.say(f"{number} of {len(suite)}, {name}: {bench_summary(script)}")
        result = measure_suite(name, script, () if full else QUICK.get(name, ()))
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
    rows = [{"name": name, "measures": bench_summary(file), "script": str(file)} for name, file in suite.items()]
    if as_json:
        console.emit_json(rows)
    else:
        console.emit_table([["name", "measures"], *([row["name"], row["measures"]] for row in rows)])


def show(result: dict[str, Any]) -> None:
    """One benchmark's lines and tables."""
    console.emit("\n".join((f"{result['name']}, {result['seconds']:g} s", *result["lines"])))
    for table in result["tables"]:
        console.emit_table([table["columns"], *table["rows"]])
