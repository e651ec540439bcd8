"""What a pipeline has done: an account of each finished run, the chain of hashes that ties them together, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, cast

from tau2rl.config import MakesDataConfig, RftConfig
from tau2rl.recipes.pipeline_plan import ROWS, Planned
from tau2rl.report.compare import compare
from tau2rl.report.schema import SCHEMA
from tau2rl.report.tables import printable
from tau2rl.runs.folder import stage_of
from tau2rl.runs.provenance import read_environment
from tau2rl.runs.reports import REPORT, read_report
from tau2rl.runs.timing import usage

Account = dict[str, Any]
TOKENS = ("policy_in", "policy_out", "policy_cached", "user_in", "user_out", "trained")


def finished(planned: Planned) -> bool:
    """Whether a run has ended with a whole result."""
    report = planned.folder / REPORT
    return report.exists() and not read_report(report)["incomplete"]


def step_account(planned: Planned) -> Account:
    """What a finished run stood on, its inputs and outputs by hash, and what it cost."""
    report = read_report(planned.folder / REPORT)
    identity = read_environment(planned.folder, planned.config)["identity"]
    seconds, cpu_seconds = usage(planned.folder)
    return {
        "stage": stage_of(planned.config),
        "folder": str(planned.folder),
        "digest": report["digest"],
        "parents": list(planned.parents),
        "begins_as": planned.begins_as,
        "inputs": _inputs(planned, identity, report),
        "outputs": _outputs(planned, report),
        "episodes": _episodes(planned, report),
        "cpu_seconds": round(cpu_seconds, 2),
        "seconds": round(seconds, 2),
        "cost": report.get("cost"),
    }


def build_pipeline_report(runs: list[Planned], compared: Sequence[str] = ()) -> dict[str, Any]:
    """The pipeline's report over the runs that are finished; it is incomplete until all are.

    `compared`: the evaluations that are compared with one another, by their names.
    """
    done = [planned for planned in runs if finished(planned)]
    steps = {planned.name: step_account(planned) for planned in done if planned.kind == "step"}
    evaluations = [_evaluation(planned, step_account(planned)) for planned in done if planned.kind == "evaluation"]
    accounts = [*steps.values(), *evaluations]
    return {
        "schema": SCHEMA,
        "stage": "pipeline",
        "incomplete": len(done) < len(runs),
        "not_done": [planned.label for planned in runs if planned not in done],
        "steps": steps,
        "evaluations": [_with_rise(entry, evaluations, steps) for entry in evaluations],
        "comparisons": _comparisons(evaluations, compared),
        "chain": chain(steps, evaluations),
        "cpu_seconds": round(sum(a["cpu_seconds"] for a in accounts), 2),
        "cpu_seconds_training": round(sum(a["cpu_seconds"] for a in steps.values()), 2),
        "cost": total_cost({**steps, **{f"{e['model']}-eval": e for e in evaluations}}),
    }


def total_cost(accounts: Mapping[str, Account]) -> dict[str, Any]:
    """What all runs took together, each a whole job: its loading too. What a run could not count is in no sum, and is named."""
    costs: dict[str, dict[str, Any]] = {name: run["cost"] for name, run in accounts.items() if run["cost"]}
    tokens: dict[str, dict[str, Any]] = {name: cost["tokens"] for name, cost in costs.items()}
    env_cpu: dict[str, float | None] = {name: cost["env_cpu"]["seconds"] for name, cost in costs.items() if "env_cpu" in cost}
    return {
        "seconds": sum(run["seconds"] for run in accounts.values()),
        "cpu_seconds": sum(run["cpu_seconds"] for run in accounts.values()),
        "runs": {name: run["seconds"] for name, run in accounts.items()},
        "episodes": sum(cost.get("episodes", 0) for cost in costs.values()),
        "tokens": {key: sum(counts.get(key) or 0 for counts in tokens.values()) for key in TOKENS},
        "env_cpu": {"seconds": sum(value or 0.0 for value in env_cpu.values())},
        "not_counted": {
            "policy tokens": [name for name, counts in tokens.items() if counts.get("reason")],
            "environments": [name for name, value in env_cpu.items() if value is None],
        },
    }


def chain(steps: Mapping[str, Account], evaluations: list[Account]) -> dict[str, Any]:
    """Whether the inputs of each run are outputs of its parents, by hash; the links that do not hold, by name.

    What begins as another step did, as the evaluation of `base` does, must have had the checkpoint that this one started from.
    """
    links: dict[str, bool] = {}
    for name, run in [*steps.items(), *((f"{entry['model']}-eval", entry) for entry in evaluations)]:
        for parent in run["parents"]:
            account = steps.get(parent)
            expected: list[str] = [*account["outputs"], *account["episodes"]] if account else []
            links[f"{parent} -> {name}"] = any(sha256 in run["inputs"] for sha256 in expected)
        if first := run["begins_as"]:
            expected = steps[first]["inputs"] if first in steps else []
            links[f"{first} -> {name}"] = any(sha256 in run["inputs"] for sha256 in expected)
    broken = [link for link, holds in links.items() if not holds]
    return {"links": len(links), "broken": broken, "holds": not broken}


def pipeline_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The table for people: a header, and a row for each model that was evaluated.

    `rise` is over the model that it was trained from, paired by task; `cpu s` are those of the steps since then. Where that is
    not the row above, as in branches, `over` names it.
    """
    entries = report["evaluations"]
    branches = any(entry.get("over", before["model"]) != before["model"] for before, entry in pairwise(entries))
    largest = max((int(entry["attempts"]) for entry in entries), default=1)
    more = f"pass@{largest}"
    table = [
        [
            "model",
            "pass@1 [95%]",
            *([more] if largest > 1 else []),
            "floor",
            "rise [95%]",
            *(["over"] if branches else []),
            "cpu s",
        ]
    ]
    for entry in entries:
        rise = entry["rise"]
        table.append(
            [
                printable(str(entry["model"])),
                _interval(entry["pass@1"], ""),
                *([_number(entry.get(more))] if largest > 1 else []),
                _number(entry["floor"]),
                "-" if rise is None else _interval(rise, "+"),
                *([printable(str(entry["over"] or "-"))] if branches else []),
                _number(entry["cpu_seconds_to_here"], digits=0),
            ]
        )
    total, training = report["cpu_seconds"], report["cpu_seconds_training"]
    blank = [""] * (len(table[0]) - 3)
    return [*table, ["all", *blank, f"evaluations {total - training:.0f} cpu s", f"{total:.0f}"]]


def comparison_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The pairs of `compare`: first minus second, each interval by itself; no row where none are compared."""
    table = [["compared", "first", "second", "difference [95%]", "p"]]
    for pair in report["comparisons"]:
        names, result = f"{printable(pair['first'])} - {printable(pair['second'])}", pair["pass@1"]
        table.append(
            [names, _number(result["a"]), _number(result["b"]), _interval(result["difference"], "+"), f"{result['p']:.3g}"]
        )
    return table


DIGITS = 8  # of a hash, in a table that must fit a terminal of 80 columns


def step_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """What each finished step was made from and what came out, with the first digits of each sha256; `report.json` has all."""
    table = [["step", "stage", "from", "digest", "output", "cpu s"]]
    for name, step in report["steps"].items():
        output = ", ".join(str(sha256)[:DIGITS] for sha256 in step["outputs"]) or "-"
        parents = ", ".join(step["parents"]) or "-"
        table.append(
            [printable(name), step["stage"], parents, step["digest"][:DIGITS], output, _number(step["cpu_seconds"], digits=0)]
        )
    return table


def _evaluation(planned: Planned, run: Account) -> Account:
    report = read_report(planned.folder / REPORT)
    overall = report["overall"]
    floors = [value for value in report["floor"].values() if value is not None]
    return {
        "model": planned.name,
        "over": planned.over,
        **run,
        "tasks": report["tasks"],
        "attempts": report["attempts"],
        "pass@1": overall["pass@1"],
        **({most: overall[most]["value"]} if (most := f"pass@{report['attempts']}") != "pass@1" else {}),
        "floor": max(floors, default=None),
    }


def _with_rise(entry: Account, evaluations: list[Account], steps: Mapping[str, Account]) -> Account:
    """An evaluation with its paired difference to the model that this one was trained from, and what was spent in between.

    In between are the steps that it needed and that one did not; the model before any training cost nothing.
    """
    before = next((each for each in evaluations if each["model"] == entry["over"]), None)
    needed = _ancestors(entry["model"], steps) - _ancestors(entry["over"], steps)
    return {
        **entry,
        "rise": None if before is None else compare(_solved(entry), _solved(before)).difference.to_json(),
        "cpu_seconds_to_here": sum(float(steps[name]["cpu_seconds"]) for name in needed),
    }


def _ancestors(name: str | None, steps: Mapping[str, Account]) -> set[str]:
    """A step and all that it stands on; none for a model before any training."""
    if name is None or name not in steps:
        return set()
    return {name}.union(*(_ancestors(parent, steps) for parent in steps[name]["parents"]))


def _comparisons(evaluations: list[Account], compared: Sequence[str]) -> list[dict[str, Any]]:
    """Each of the evaluations that are compared, minus each behind it, on the same tasks."""
    found = {entry["model"]: entry for entry in evaluations}
    pairs = combinations([found[name] for name in compared if name in found], 2)
    return [_comparison(first, second) for first, second in pairs]


def _comparison(first: Account, second: Account) -> dict[str, Any]:
    result = compare(_solved(first), _solved(second))
    values = {**asdict(result), "difference": result.difference.to_json()}
    return {"first": first["model"], "second": second["model"], "pass@1": values}


def _solved(evaluation: Account) -> dict[str, float]:
    counts = cast("dict[str, dict[str, int]]", read_report(Path(evaluation["folder"]) / REPORT)["by_task"])
    return {key: count["solved"] / count["valid"] for key, count in counts.items()}


def _inputs(planned: Planned, identity: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """sha256 of every file and checkpoint that went in, of the episodes too that a run took from others."""
    inputs: Mapping[str, Any] = report.get("inputs", {})
    found = [str(part["sha256"]) for part in inputs.get("data", [])]
    if isinstance(planned.config, RftConfig) and planned.config.sources:
        found += [str(source["episodes_sha256"]) for source in report["sources"]]
    if "parent" in inputs:
        found.append(str(inputs["parent"]["sha256"]))
    agent = str(identity.get("agent", ""))
    return [*found, *([agent.removeprefix("checkpoint ")] if agent.startswith("checkpoint ") else [])]


def _outputs(planned: Planned, report: Mapping[str, Any]) -> list[str]:
    """sha256 of the rows or of the checkpoint that came out; none of an evaluation."""
    if "outputs" in report:
        return [str(report["outputs"]["checkpoint"]["sha256"])]
    name = ROWS.get(stage_of(planned.config))
    return [] if name is None else [str(report["files"][name]["sha256"])]


def _episodes(planned: Planned, report: Mapping[str, Any]) -> list[str]:
    """sha256 of the episodes that a step has played, for those that filter them."""
    plays = isinstance(planned.config, MakesDataConfig) and planned.config.plays
    return [str(source["episodes_sha256"]) for source in report.get("sources", [])] if plays else []  # none in older reports


def _interval(estimate: Mapping[str, Any], sign: str) -> str:
    value, ci95 = estimate.get("value"), estimate.get("ci95")
    if value is None:
        return "-"
    text = f"{value:{sign}.3f}"
    return text if ci95 is None else f"{text} [{ci95[0]:{sign}.3f}, {ci95[1]:{sign}.3f}]"


def _number(value: float | None, *, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
