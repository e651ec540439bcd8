"""Who is to blame for every episode of a run, raw and adjusted success side by side, and `blame.json`, which keeps both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.report.aggregate import by_domain, replaces
from tau2rl.report.estimators import Estimate, mean_over_tasks
from tau2rl.runs.files import read_json, write_json
from tau2rl.runs.records import record_files_of
from tau2rl.types import Attempt, EpisodeRecord, Fault, Status, TaskRef
from tau2rl.verify.blame import Blame, TaskFacts, blame, facts_of

FILE = "blame.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributed:
    """An episode with who is to blame: `Attributed(attempt=..., solved=False, graded=True, failed=False, blame=Blame(...))`."""

    attempt: Attempt
    solved: bool  # tau2 gave it 1
    graded: bool
    failed: bool  # an environment or the infrastructure broke
    blame: Blame | None

    @property
    def counts(self) -> bool:
        """Whether it says something about the agent: neither user nor task nor infrastructure had a hand in it."""
        return self.blame is None or self.blame.fault is Fault.AGENT

    def to_json(self) -> dict[str, Any]:
        """One entry of `episodes`."""
        assert self.blame is not None
        found = {"fault": self.blame.fault.value, "name": self.blame.name, "detail": self.blame.detail}
        return {"episode": self.attempt.key, "solved": self.solved, **found}


def attribute(records: Iterable[EpisodeRecord]) -> list[Attributed]:
    """Every sampled attempt of a run, by the record of it that counts; reads the records once and keeps none."""
    facts: dict[TaskRef, TaskFacts] = {}
    found: dict[str, Attributed] = {}
    for record in records:
        attempt, episode = record.attempt, record.episode
        before = found.get(attempt.key)
        if attempt.greedy or (before is not None and not replaces(earlier_failed=before.failed)):
            continue
        known = facts.setdefault(attempt.task, facts.get(attempt.task) or facts_of(attempt.task))
        found[attempt.key] = Attributed(
            attempt=attempt,
            solved=episode.solved,
            graded=episode.grade is not None,
            failed=episode.status is Status.FAILED,
            blame=blame(episode, known),
        )
    return list(found.values())


def account(attributed: Sequence[Attributed]) -> dict[str, Any]:
    """`scores` by domain and overall, `episodes` with whoever is to blame; JSON-ready."""
    tasks: dict[str, list[Attributed]] = {}
    for one in attributed:
        tasks.setdefault(one.attempt.task.key, []).append(one)
    domains = {name: [one for part in parts.values() for one in part] for name, parts in by_domain(tasks).items()}
    return {
        "schema": SCHEMA,
        "scores": {name: _scores(part) for name, part in {**domains, "overall": attributed}.items()},
        "episodes": [one.to_json() for one in attributed if one.blame is not None],
    }


def keep(run: Path, found: dict[str, Any]) -> None:
    """Write `blame.json` into a run folder, with the sizes of the files that it was made from. Raises OSError."""
    write_json(run / FILE, {**found, "files": _sizes(run)})


def kept(run: Path) -> dict[str, Any] | None:
    """What `keep` has written; None where there is nothing, or the run has other episodes by now."""
    file = run / FILE
    values = read_json(file) if file.is_file() else {}
    return values if values.get("schema") == SCHEMA and values.get("files") == _sizes(run) else None


def _sizes(run: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in record_files_of(run)}


def _scores(part: Sequence[Attributed]) -> dict[str, Any]:
    out = [one for one in part if not one.counts]
    failed = [one for one in part if not one.solved and one.blame is not None]
    names = {fault: Counter(one.blame.name for one in failed if one.blame and one.blame.fault is fault) for fault in Fault}
    played = [one for one in part if one.graded]
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
        tasks.setdefault(one.attempt.task.key, []).append(one.solved)
    if not tasks:
        return Estimate(value=None, ci95=None, reason="no episode is left")
    attempts = len(tasks) / sum(1 / len(marks) for marks in tasks.values())
    return mean_over_tasks([sum(marks) / len(marks) for marks in tasks.values()], trials=attempts)
