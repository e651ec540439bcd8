"""`tau2rl blame`: who is to blame for every episode without success, and the score with and without what was not the agent's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tau2rl import console
from tau2rl.cli.options import Json
from tau2rl.errors import UserError
from tau2rl.report.aggregate import by_domain, counted
from tau2rl.report.estimators import Estimate, mean_over_tasks
from tau2rl.report.tables import number
from tau2rl.runs import records
from tau2rl.types import EpisodeRecord, Fault

if TYPE_CHECKING:
    from tau2rl.verify.blame import Blame


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributed:
    """An episode with who is to blame: `Attributed(record=..., blame=Blame(...))`."""

    record: EpisodeRecord
    blame: Blame | None

    @property
    def solved(self) -> bool:
        """Whether tau2 gave it 1."""
        return self.record.episode.solved

    @property
    def counts(self) -> bool:
        """Whether it says something about the agent: neither user nor task nor infrastructure had a hand in it."""
        return self.blame is None or self.blame.fault is Fault.AGENT


def blame(
    run: Annotated[Path, typer.Argument(help="A run that played episodes.", metavar="RUN_DIR", show_default=False)],
    as_json: Json = False,
) -> None:
    """Say who is to blame for every episode without success, agent, user, task or infra, and name the agent's own failures.

    By rules, not by a model. Raw and adjusted success stand side by side: the adjusted one leaves out every episode, solved or
    not, in which the user simulator broke its own rules, or whose task is defective.
    """
    attributed = _attributed(run)
    if not attributed:
        raise UserError(f"`{run}` has no episodes")
    tasks: dict[str, list[Attributed]] = {}
    for one in attributed:
        tasks.setdefault(one.record.attempt.task.key, []).append(one)
    domains = {name: [one for part in parts.values() for one in part] for name, parts in by_domain(tasks).items()}
    rows = {name: _scores(part) for name, part in {**domains, "overall": attributed}.items()}
    if as_json:
        console.emit_json(
            {"run": str(run), "scores": rows, "episodes": [_json(one) for one in attributed if one.blame is not None]}
        )
        return
    table = [["domain", "raw [95%]", "adjusted [95%]", "left out", *(fault.value for fault in Fault)]]
    for name, row in rows.items():
        if name != "overall" or len(rows) > 2 or len(domains) == 1:
            faults = [str(row["faults"].get(fault.value, 0)) for fault in Fault]
            table.append([name, _interval(row["raw"]), _interval(row["adjusted"]), str(row["left_out"]), *faults])
    console.emit_table(table)
    for fault in Fault:
        if names := rows["overall"]["names"].get(fault.value):
            console.emit(f"{fault.value}: " + ", ".join(f"{count} {name}" for name, count in names.items()))
    solved = rows["overall"]["left_out_solved"]
    if solved:
        console.emit(f"{solved} of the episodes that were left out were solved, with the user's mistake or on a defective task")


def _attributed(run: Path) -> list[Attributed]:
    from tau2rl.verify.blame import blame as blame_of, facts_of

    kept = counted(records.read_run(run))
    facts = {record.attempt.task: facts_of(record.attempt.task) for record in kept}
    return [
        Attributed(record=record, blame=blame_of(record.episode, facts[record.attempt.task]))
        for record in kept
        if not record.attempt.greedy
    ]


def _scores(part: Sequence[Attributed]) -> dict[str, Any]:
    out = [one for one in part if not one.counts]
    failed = [one for one in part if not one.solved and one.blame is not None]
    names = {fault: Counter(one.blame.name for one in failed if one.blame and one.blame.fault is fault) for fault in Fault}
    played = [one for one in part if one.record.episode.grade is not None]
    return {
        "raw": _success(played).to_json(),
        "adjusted": _success([one for one in played if one.counts]).to_json(),
        "left_out": len(out),
        "left_out_solved": sum(one.solved for one in out),
        "faults": {fault.value: sum(counts.values()) for fault, counts in names.items()},
        "names": {fault.value: dict(counts.most_common()) for fault, counts in names.items() if counts},
    }


def _success(part: Sequence[Attributed]) -> Estimate:
    """Mean over tasks of the share solved; a task of which nothing is left does not count."""
    tasks: dict[str, list[bool]] = {}
    for one in part:
        tasks.setdefault(one.record.attempt.task.key, []).append(one.solved)
    if not tasks:
        return Estimate(value=None, ci95=None, reason="no episode is left")
    attempts = len(tasks) / sum(1 / len(marks) for marks in tasks.values())
    return mean_over_tasks([sum(marks) / len(marks) for marks in tasks.values()], trials=attempts)


def _json(one: Attributed) -> dict[str, Any]:
    assert one.blame is not None
    found = {"fault": one.blame.fault.value, "name": one.blame.name, "detail": one.blame.detail}
    return {"episode": one.record.attempt.key, "solved": one.solved, **found}


def _interval(estimate: dict[str, Any]) -> str:
    ci95 = estimate["ci95"]
    return number(estimate["value"]) + (f" [{ci95[0]:.3f}, {ci95[1]:.3f}]" if ci95 else "")
