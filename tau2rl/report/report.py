"""Records -> `report.json`: the numbers with their intervals, the floor beside them, and an account of every attempt.

A run of which any planned attempt has no valid episode is incomplete: its headline numbers are null with the reason, and what
it has so far stands under `so_far`, where nobody takes it for a result. FAILED attempts are never zeros and never left unsaid.
A domain whose own attempts are all there keeps its numbers.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tau2rl.report.aggregate import Aggregate, TaskCount, by_domain
from tau2rl.report.cost import Costs, Session, account
from tau2rl.report.estimators import Estimate, mean_over_groups, mean_over_tasks, measures, rerun_se
from tau2rl.report.schema import SCHEMA
from tau2rl.report.tables import quantity
from tau2rl.types import Attempt, EpisodeRecord, Status

FLOORS = ("do_nothing", "always_transfer")
SHOWN = 20  # at most so many unfinished attempts are named

Section = dict[str, Estimate]


def build_report(
    records: Iterable[EpisodeRecord],
    *,
    planned: Sequence[Attempt],
    floors: Mapping[str, Mapping[str, float | None]],
    digest: str,
    repetitions: int = 1,
    tasks_with_writes: Collection[str] | None = None,
    cells: Mapping[str, str] | None = None,
    sessions: Sequence[Session] = (),
) -> dict[str, Any]:
    """The report of a run, JSON-ready; reads `records` once and keeps none.

    `floors[domain]["do_nothing"]` is the success rate of that policy over the tasks of the run in the domain (likewise
    `always_transfer`; None = not known). `tasks_with_writes` are the task keys whose reference actions write.
    `cells` are places of tasks on the grid that they were made for, by key: "3 writes, 6-9 reads", "2 problems, mms, hard".
    Of several `repetitions` the numbers are those of all attempts, and k goes up to the attempts of one.
    `sessions` are what the sessions of the run measured of themselves.
    """
    aggregate, costs = Aggregate(planned), Costs()
    for record in records:
        aggregate.add(record)
        costs.add(record.episode)
    not_done = aggregate.not_done()
    reason = _reason(aggregate.sampled, aggregate.greedy) if planned else "nothing was planned"
    attempts = _smallest(aggregate.sampled, "planned") // repetitions
    sampled = _results(aggregate.sampled, attempts)
    return {
        "schema": SCHEMA,
        "stage": "eval",
        "tasks": len(aggregate.sampled.keys() | aggregate.greedy.keys()),
        "attempts": attempts,
        "repetitions": _repetitions(aggregate, repetitions, attempts) if repetitions > 1 and not reason else None,
        "overall": sampled["overall"],
        "macro": sampled["macro"],
        "by_domain": sampled["by_domain"],
        "greedy": _results(aggregate.greedy, 1) if aggregate.greedy else None,
        "tasks_with_writes": None if tasks_with_writes is None else _writes(aggregate.sampled, tasks_with_writes),
        "by_cell": None if cells is None else _by_cell(aggregate.sampled, cells, attempts),
        "floor": _floor(aggregate, floors),
        "floor_by_domain": {
            domain: {name: floors.get(domain, {}).get(name) for name in FLOORS} for domain in by_domain(_all_tasks(aggregate))
        },
        "tasks_by_domain": {domain: len(counts) for domain, counts in by_domain(_all_tasks(aggregate)).items()},
        "incomplete": bool(reason),
        "reason": reason or None,
        "so_far": _so_far(aggregate, not_done) if reason else None,
        **_account(aggregate, len(not_done)),
        "partial": _mean(aggregate.partial, reason),
        "shaped": _mean(aggregate.shaped, reason),
        "by_task": {
            key: {"attempts": count.planned, "valid": count.valid, "solved": count.solved}
            for key, count in sorted(aggregate.sampled.items())
        },
        "cost": account(sessions, costs),
        "digest": digest,
    }


def _account(aggregate: Aggregate, not_done: int) -> dict[str, Any]:
    """Where every attempt went: statuses, faults, tokens, turns and seconds."""
    terminations, faults = Counter(aggregate.terminations), Counter(fault.value for fault in aggregate.faults.elements())
    for termination, fault in aggregate.failures():
        terminations[termination] += 1
        faults[fault.value] += 1
    return {
        "episodes": {
            **{status.value: aggregate.statuses[status] for status in (Status.COMPLETED, Status.TRUNCATED, Status.MALFORMED)},
            "failed": aggregate.failed,
        },
        "missing": not_done - aggregate.failed,
        "failed_tries": aggregate.failed_tries,
        "failures": [
            {"fault": fault, "message": message, "count": count} for (fault, message), count in aggregate.reasons.most_common(5)
        ],
        "records": {"unplanned": aggregate.unplanned, "repeated": aggregate.repeated},
        "terminations": dict(sorted(terminations.items())),
        "faults": dict(sorted(faults.items())),
        "tokens": {name: aggregate.tokens[name] for name in ("sampled", "thought", "prompt", "cached", "user")},
        "cost_usd": math.fsum(aggregate.cost_usd),
        "turns": {"mean": _plain_mean(aggregate.turns), "max": max(aggregate.turns, default=None)},
        "seconds": {
            "mean": _plain_mean(aggregate.seconds),
            "max": max(aggregate.seconds, default=None),
            "total": math.fsum(aggregate.seconds),
        },
    }


def _repetitions(aggregate: Aggregate, count: int, attempts: int) -> dict[str, Any]:
    """pass@1 of each repetition and how much it varies, by domain and overall.

    `sd`: of whole runs, from one to the next. `sd_by_attempts`: what the luck of the attempts alone would make of it; what is
    above that is of the runs themselves (a server, a day).
    """

    def of(part: Mapping[str, TaskCount]) -> dict[str, Any]:
        domains, played = by_domain(part), len(part) * attempts
        solved = [
            sum(aggregate.solved_at[domain, r * attempts + i] for domain in domains for i in range(attempts))
            for r in range(count)
        ]
        values = [one / played for one in solved]
        by_luck = rerun_se((one.valid, one.solved) for one in part.values())
        return {
            "pass@1": values,
            "sd": statistics.stdev(values),
            "sd_by_attempts": None if by_luck is None else by_luck * math.sqrt(count),
        }

    counts = aggregate.sampled
    return {"count": count, "overall": of(counts), "by_domain": {name: of(part) for name, part in by_domain(counts).items()}}


def _results(counts: Mapping[str, TaskCount], largest_k: int) -> dict[str, Any]:
    """`overall`, `macro` (mean over domains) and `by_domain` of one kind of attempts, for k up to the largest."""
    largest_k = max(1, largest_k)
    domains = {domain: _section(list(part.values()), largest_k) for domain, part in by_domain(counts).items()}
    overall = _section(list(counts.values()), largest_k)
    macro = {name: mean_over_groups([section[name] for section in domains.values()]) for name in overall}
    return {
        "overall": _json(overall),
        "macro": _json(macro),
        "by_domain": {domain: _json(section) for domain, section in domains.items()},
    }


def _section(counts: Sequence[TaskCount], largest_k: int) -> Section:
    """Every measure over some tasks; null throughout when one of their attempts has no valid episode."""
    planned, valid = sum(c.planned for c in counts), sum(c.valid for c in counts)
    if not planned or valid < planned:
        lacking = f"{planned - valid} of {quantity(planned, 'attempt')} missing or failed"
        reason = lacking if planned else "no such attempts were planned"
        return {name: Estimate(value=None, ci95=None, reason=reason) for name, _, _ in measures(largest_k)}
    attempts = len(counts) / math.fsum(1 / count.valid for count in counts)  # of a task: the mean that a variance sees
    section = {
        name: mean_over_tasks([estimator(count.valid, count.solved, k) for count in counts], trials=attempts / k)
        for name, estimator, k in measures(largest_k)
    }
    section["pass@1"] = replace(section["pass@1"], rerun_se=rerun_se((count.valid, count.solved) for count in counts))
    return section


def _json(section: Section) -> dict[str, dict[str, Any]]:
    return {name: estimate.to_json() for name, estimate in section.items()}


def _so_far(aggregate: Aggregate, not_done: Sequence[str]) -> dict[str, Any]:
    """What an incomplete run has: only tasks with a valid episode, k up to the fewest that any of them has."""
    sampled, greedy = _with_evidence(aggregate.sampled), _with_evidence(aggregate.greedy)
    return {
        "note": "partial numbers of an incomplete run, not a result",
        "tasks": len(sampled),
        "attempts": _smallest(sampled, "valid"),
        "tasks_by_domain": {domain: len(part) for domain, part in by_domain({**greedy, **sampled}).items()},
        **_results(sampled, _smallest(sampled, "valid")),
        "greedy": _results(greedy, 1) if greedy else None,
        "partial": _mean(aggregate.partial, ""),
        "shaped": _mean(aggregate.shaped, ""),
        "not_done": list(not_done[:SHOWN]),
    }


def _with_evidence(counts: Mapping[str, TaskCount]) -> dict[str, TaskCount]:
    return {
        key: TaskCount(planned=count.valid, valid=count.valid, solved=count.solved)
        for key, count in counts.items()
        if count.valid
    }


def _writes(counts: Mapping[str, TaskCount], keys: Collection[str]) -> dict[str, Any]:
    """pass@1 without the tasks that a policy solves by leaving the database alone."""
    chosen = [count for key, count in counts.items() if key in keys]
    if not chosen:
        empty = Estimate(value=None, ci95=None, reason="no task of the run has reference writes")
        return {"tasks": 0, "pass@1": empty.to_json()}
    return {"tasks": len(chosen), "pass@1": _section(chosen, 1)["pass@1"].to_json()}


def in_grid_order(cell: str) -> tuple[list[int], str]:
    """What sorts cells by their writes, then their reads; those of telecom by their problems.

    >>> sorted(["1 writes, 10+ reads", "1 writes, 3-5 reads"], key=in_grid_order)
    ['1 writes, 3-5 reads', '1 writes, 10+ reads']
    """
    return [int(number) for number in re.findall(r"\d+", cell)], cell


def _by_cell(counts: Mapping[str, TaskCount], cells: Mapping[str, str], largest_k: int) -> dict[str, Any]:
    """Tasks and pass@1 to pass@k of each cell that the run has, in the order of the grid."""
    parts: dict[str, list[TaskCount]] = {}
    for key, count in counts.items():
        parts.setdefault(cells[key], []).append(count)
    wanted = {f"pass@{k}" for k in range(1, max(1, largest_k) + 1)}
    sections = {cell: _json(_section(parts[cell], max(1, largest_k))) for cell in sorted(parts, key=in_grid_order)}
    return {
        cell: {"tasks": len(parts[cell]), **{name: one for name, one in section.items() if name in wanted}}
        for cell, section in sections.items()
    }


def _floor(aggregate: Aggregate, floors: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """Each floor over the whole run: the domains' floors, weighted by their tasks in it; null where one is not known."""
    sizes = {domain: len(counts) for domain, counts in by_domain(_all_tasks(aggregate)).items()}
    out: dict[str, float | None] = {}
    for name in FLOORS:
        rates = {domain: floors.get(domain, {}).get(name) for domain in sizes}
        known = [rate * sizes[domain] for domain, rate in rates.items() if rate is not None]
        out[name] = math.fsum(known) / sum(sizes.values()) if sizes and len(known) == len(sizes) else None
    return out


def _all_tasks(aggregate: Aggregate) -> dict[str, TaskCount]:
    return {**aggregate.greedy, **aggregate.sampled}


def _reason(*parts: Mapping[str, TaskCount]) -> str:
    planned = sum(count.planned for counts in parts for count in counts.values())
    missing = planned - sum(count.valid for counts in parts for count in counts.values())
    return f"{missing} of {quantity(planned, 'attempt')} missing or failed" if missing else ""


def _smallest(counts: Mapping[str, TaskCount], field: str) -> int:
    return min((int(getattr(count, field)) for count in counts.values()), default=0)


def _mean(values: Sequence[float], reason: str) -> dict[str, Any]:
    if reason or not values:
        return {"value": None, "episodes": len(values), "reason": reason or "no graded episodes"}
    return {"value": _plain_mean(values), "episodes": len(values)}


def _plain_mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
