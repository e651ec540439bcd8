"""How the result of a run is printed, of whatever stage: a table, and below it what the table cannot say."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tau2rl import console
from tau2rl.report.tables import (
    amounts,
    blame_words,
    cell_rows,
    cost_words,
    interval,
    number,
    price_words,
    printable,
    quantity,
    report_rows,
    short_words,
    total_words,
)
from tau2rl.runs.budget import budget_option, cap_words
from tau2rl.runs.prices import HOUR


def shown(path: Path) -> str:
    """A path as one would type it here: relative to the current directory when it is below it, quoted where a shell needs it."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def program() -> str:
    """How to call this command line here: `tau2rl` where the shell finds this one under that name, else by its path."""
    beside, found = Path(sys.executable).with_name("tau2rl"), shutil.which("tau2rl")
    if not beside.exists() or (found and Path(found).exists() and Path(found).samefile(beside)):
        return "tau2rl"
    return shown(beside)


def print_report(report: Mapping[str, Any], folder: Path) -> None:
    """A report, as the command that made it prints it."""
    match report.get("stage"):
        case "seed" | "rft-filter":
            print_dataset(report, folder)
        case "sft" | "grpo":
            print_training(report)
        case "pipeline":
            print_pipeline(report)
        case _:
            print_evaluation(report)
    if budget := report.get("budget"):
        console.emit_words(_of_the_budget(budget))


def print_evaluation(report: Mapping[str, Any]) -> None:
    """The table, and below it what became of every attempt."""
    console.emit_table(report_rows(report))
    if by_cell := cell_rows(report):
        console.emit_table(by_cell)
    if repeated := report.get("repetitions"):
        console.emit(_of_repetitions(repeated))
    ended = ", ".join(f"{count} {status}" for status, count in report["episodes"].items())
    console.emit(f"episodes: {ended}" + (f", {report['missing']} missing" if report["missing"] else ""))
    for name in ("faults", "terminations"):
        if report[name]:
            console.emit(f"{name}: " + ", ".join(f"{key} {count}" for key, count in report[name].items()))
    if (blamed := report.get("blame")) and blamed["overall"]["names"]:
        console.emit_words(f"blame: {blame_words(blamed['overall'])}")
    floor = ", ".join(
        f"{name.replace('_', ' ')} {'unknown' if value is None else f'{value:.3f}'}" for name, value in report["floor"].items()
    )
    console.emit(f"floor: {floor}")
    if cost := report.get("cost"):
        console.emit_words(f"cost: {short_words(cost)}")
    if published := report.get("published"):
        _print_published(published)
    if test_access := report.get("test_access"):
        console.emit(_of_the_test(test_access))
    for line in console.failure_words(report.get("failures", ()), tries=report.get("failed_tries", 0)):
        console.emit(line)
    if report["incomplete"]:
        console.emit(f"incomplete: {report['reason']}")
        if report["so_far"]:
            console.emit("not done: " + ", ".join(report["so_far"]["not_done"]))


def _print_published(published: Mapping[str, Any]) -> None:
    """The card of the model beside what was measured, and what to look at where they do not agree."""
    head = [f"card of {printable(published['model'])}", "published", "measured [95%]", ""]
    words = {True: "within", False: "outside", None: "no interval"}
    domains: Mapping[str, Any] = published["domains"]
    rows = [
        [name, number(one["published"]), interval({"value": one["measured"], "ci95": one["ci95"]}), words[one["inside"]]]
        for name, one in domains.items()
    ]
    if not rows:
        return console.emit(f"card of {printable(published['model'])}: it has no result in these domains")
    console.emit_table([head, *rows])
    console.emit(f"source: {published['source']}; user simulator: {published['user']}")
    differs, outside = published["differs"], [name for name, one in domains.items() if one["inside"] is False]
    for one in differs:
        console.emit(f"not as on the card, {one}")
    if outside and differs:
        console.emit("so a distance from the card says little: measure it in the card's own protocol first")
    elif outside:
        console.emit(f"{', '.join(outside)}: outside the interval, so the set-up is the first suspect. Look at")
        for one in published["look_at"]:
            console.emit(f"  {one}")
    return None


def print_dataset(report: Mapping[str, Any], folder: Path) -> None:
    """Kept of tried, by domain; below it why the others were left out, the floor, and the files."""
    head = ["domain", "tried", "solved", "kept", "tasks", "covered", "floor"]
    rows = [
        [name, *(str(part[key]) for key in ("tried", "solved", "kept", "tasks", "covered")), _floor(report["floor"].get(name))]
        for name, part in report["domains"].items()
    ]
    console.emit_table([head, *rows])
    if report["dropped"]:
        console.emit("left out: " + ", ".join(f"{count} {reason}" for reason, count in report["dropped"].items()))
    kinds, tasks = report["diversity"]["kinds"], report["diversity"]["tasks"]
    console.emit(
        f"diversity of what is kept: {quantity(kinds['distinct'], 'kind')}, as even as {kinds['effective']:g}; "
        f"{quantity(tasks['distinct'], 'task')}, as even as {tasks['effective']:g}"
    )
    for name, file in report["files"].items():
        console.emit(f"{shown(folder / name)}: {quantity(file['rows'], 'row')}, sha256 {file['sha256'][:16]}")
    if cost := report.get("cost"):
        console.emit_words(f"cost: {short_words(cost)}")
    if report["incomplete"]:
        console.emit("incomplete: not every attempt was graded")


def print_training(report: Mapping[str, Any]) -> None:
    """The numbers of the training, what became of the rows, and where the checkpoint is."""
    training = {key: value for key, value in report["training"].items() if not isinstance(value, dict)}
    console.emit_table([["training", ""], *([key.replace("_", " "), _word(value)] for key, value in training.items())])
    if rows := report.get("rows"):  # a backend of the user's need not count them
        console.emit(f"rows: {rows['used']} used, {rows.get('held_out', 0)} held out, {rows.get('dropped', 0)} left out")
        if rows.get("exact"):
            console.emit(
                f"tokens: {quantity(rows['exact'], 'row')} as they were sampled, {rows['rendered']} rendered from messages"
            )
        for reason, count in rows.get("reasons", {}).items():
            console.emit(f"left out: {count} {reason}")
    for step, value in report["training"].get("validation", {}).items():
        console.emit(f"step {step}: {value:.3f} of the validation tasks solved")
    if cost := report.get("cost"):
        console.emit_words(f"cost: {short_words(cost)}")
    checkpoint = report["outputs"]["checkpoint"]
    console.emit(f"{shown(Path(checkpoint['path']))}: sha256 {checkpoint['sha256'][:16]}")


def print_pipeline(report: Mapping[str, Any]) -> None:
    """The table, and below it what each step gave, whether the chain of hashes holds, and what is not done."""
    from tau2rl.recipes.pipeline_report import comparison_rows, pipeline_rows, step_rows

    if report["evaluations"]:
        console.emit_table(pipeline_rows(report))
    if report.get("comparisons"):
        console.emit_table(comparison_rows(report))
    console.emit_table(step_rows(report))
    chain = report["chain"]
    if chain["links"]:  # of the first step alone there is nothing to check
        broken = f"broken: {', '.join(chain['broken'])}" if chain["broken"] else "sound"
        console.emit(f"chain of hashes: {quantity(chain['links'], 'link')}, {broken}")
    if total := report.get("cost"):
        console.emit_words(f"cost: {short_words(total)}")
    if report["incomplete"]:
        console.emit(f"not done: {', '.join(report['not_done']) or 'nothing is left, but the last start was broken off'}")


def print_cost(report: Mapping[str, Any]) -> None:
    """What a run took, in detail; of a pipeline, what each of its runs took."""
    if "steps" in report and "evaluations" in report:
        runs = [*report["steps"].items(), *((f"{entry['model']}-eval", entry) for entry in report["evaluations"])]
        for name, account in runs:
            if cost := account.get("cost"):
                console.emit_words(f"cost of {name}: {cost_words(cost)}")
    if cost := report.get("cost"):
        console.emit_words(f"cost in detail: {total_words(cost) if 'runs' in cost else cost_words(cost)}")


def _of_the_budget(budget: Mapping[str, Any]) -> str:
    """What was spent, under which caps, and at which prices."""
    spent = budget["spent"]
    taken = amounts(spent["tokens"], spent["usd"], spent["hours"] * HOUR)
    words = [f"budget: spent {taken}, with loading and saving"]
    if caps := budget["caps"]:
        words.append("at most " + ", ".join(cap_words(cap, value) for cap, value in caps.items()))
    if budget["stopped"]:
        words.append(f"stopped at the cap `{budget_option(budget['stopped'])}`")
    return "; ".join(filter(None, [*words, price_words(budget["prices"])]))


def _of_repetitions(repeated: Mapping[str, Any]) -> str:
    """pass@1 of each whole run, and whether they differ by more than the luck of their attempts."""
    overall = repeated["overall"]
    values = ", ".join(f"{value:.3f}" for value in overall["pass@1"])
    luck = overall["sd_by_attempts"]
    beside = "" if luck is None else f"; the luck of the attempts alone would make it {luck:.3f}"
    return f"repetitions: pass@1 {values}; sd between them {overall['sd']:.3f}{beside}"


def _of_the_test(test_access: Mapping[str, Any]) -> str:
    """Which selection a test belongs to, and what is wrong with it."""
    if test_access["warning"]:
        return f"warning: {test_access['warning']}"
    return f"test-set access {test_access['number']} for the checkpoint chosen by `{test_access['selection']}`"


def _floor(floor: Mapping[str, float | None] | None) -> str:
    """The best of the constant policies."""
    known = [value for value in (floor or {}).values() if value is not None]
    return f"{max(known):.3f}" if known else "-"


def _word(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
