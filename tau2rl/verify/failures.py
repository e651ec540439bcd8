"""What the agent of earlier runs failed at, by the names of `tau2rl blame`, as clusters that new tasks are made for.

Failures are alike that have one name, are about one tool and argument, or about one rule that the request of their task breaks;
of telecom, about one problem of the phone or its line and the tool that puts it right.
What user, task or infrastructure did is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from tau2rl.config import SynthConfig
from tau2rl.env.task_cells import TaskCell, cell_of
from tau2rl.env.task_replay import Replayer
from tau2rl.env.tasks import held_out
from tau2rl.errors import UserError
from tau2rl.report.aggregate import counted
from tau2rl.runs import records
from tau2rl.runs.folder import read_config
from tau2rl.runs.provenance import file_hash, read_environment
from tau2rl.synth.compose import REFUSAL
from tau2rl.synth.failure_clusters import Cell, Cluster, Failures, Focus, calls_in_words
from tau2rl.synth.telecom_problems import TO_A_HUMAN, ProblemBook, composition
from tau2rl.types import EpisodeRecord, Fault, TaskRef
from tau2rl.verify.blame import Blame, TaskFacts, against_reference, blame, facts_of, undone

LEFT_UNDONE = ("missing_write", "missing_follow_up", "premature_transfer", "gave_up")  # names that say what was not done


class _Aim(Protocol):
    """Of one kind of domain: what a failure is about, and where new tasks for it stand."""

    def target(self, found: Blame, facts: TaskFacts, left: Sequence[str], place: TaskCell) -> tuple[Focus, str]:
        """What a new task has to exercise, and the wrong argument; `left`: reference actions that were not taken, by name."""
        ...

    def cells(self, places: Sequence[TaskCell], focus: Focus) -> list[Cell]:
        """Where the tasks stood that failed, in the grid that is asked for; all of it where none of them did."""
        ...

    def same(self, facts: TaskFacts, place: TaskCell) -> str:
        """What a task must not have that was played, as `Draft.same` has it."""
        ...


def failures_of(runs: Sequence[Path], config: SynthConfig) -> Failures:
    """The failures of runs on training tasks of the config's domain. Raises UserError for others, and where there are none."""
    aim: _Aim = _TelecomAim(config) if config.domain == "telecom" else _DatabaseAim(config)
    found: dict[tuple[str, str, Focus], tuple[list[str], list[TaskCell]]] = {}
    left_out: Counter[str] = Counter()
    played: dict[TaskRef, TaskFacts] = {}
    attempts = 0
    for run, record in _attempts(runs, config.domain):
        task, attempts = record.attempt.task, attempts + 1
        if task not in played:
            played[task] = facts_of(task)
        facts = played[task]
        name = blame(record.episode, facts)
        if record.episode.solved or name is None:
            continue
        if name.fault is not Fault.AGENT:
            left_out[f"{name.fault.value}: {name.name}"] += 1
            continue
        place = cell_of(task)
        left = [*(call.name for call in against_reference(record.episode, facts)[1]), *undone(record.episode, facts)]
        focus, argument = aim.target(name, facts, left, place)
        keys, places = found.setdefault((name.name, argument, focus), ([], []))
        keys.append(f"{run}: {record.attempt.key}")
        places.append(place)
    if not found:
        raise UserError(
            f"no attempt at a task of {config.domain} failed by the agent's own fault in {', '.join(f'`{run}`' for run in runs)}",
            hint="name runs of this domain, or another `--domain`",
        )
    clusters = [
        Cluster(name=name, argument=argument, focus=focus, cells=tuple(aim.cells(places, focus)), failures=tuple(sorted(keys)))
        for (name, argument, focus), (keys, places) in found.items()
    ]
    return Failures(
        clusters=tuple(sorted(clusters, key=lambda cluster: (-len(cluster.failures), cluster.key))),
        runs=tuple(_described(run) for run in runs),
        attempts=attempts,
        left_out=dict(sorted(left_out.items())),
        tasks=frozenset((cell_of(ref).user, aim.same(facts, cell_of(ref))) for ref, facts in played.items()),
    )


class _DatabaseAim:
    """Airline and retail.

    A task that must be refused is about its rule; any other about the tool that blame names, or the first write that is missing.
    """

    def __init__(self, config: SynthConfig) -> None:
        self._grid: list[Cell] = [(writes, burden) for writes in config.writes for burden in config.burdens]

    def target(self, found: Blame, facts: TaskFacts, left: Sequence[str], place: TaskCell) -> tuple[Focus, str]:
        if place.breaks:
            return Focus(rule=place.breaks), ""
        if found.name == "missing_information":
            return Focus(asks=True), ""
        return Focus(tool=next(iter(_about(found, facts, left)), "")), _argument(found)

    def cells(self, places: Sequence[TaskCell], focus: Focus) -> list[Cell]:
        if focus.rule:
            return [REFUSAL]
        mine = [cell for cell in self._grid if any(cell[0] == p.writes and p.burden in ("", cell[1]) for p in places)]
        return mine or self._grid

    def same(self, facts: TaskFacts, place: TaskCell) -> str:
        return calls_in_words([asdict(call) for call in facts.gold if facts.tool_kinds.get(call.name) == "write"])


class _TelecomAim:
    """Telecom.

    A task that goes to a human is about the problem for which it does; any other about the problem that the tool puts right which
    blame names, or the first, in the order of the manual, that was not put right.
    """

    def __init__(self, config: SynthConfig) -> None:
        self._book = ProblemBook(Replayer(config.domain).policy)
        self._grid = self._book.cells(config.problems, config.intents, config.personas)

    def target(self, found: Blame, facts: TaskFacts, left: Sequence[str], place: TaskCell) -> tuple[Focus, str]:
        wrong = [one for one in self._book.problems if place.problems and one.name in place.problems.names]
        if beyond := next((problem for problem in wrong if not problem.fixes), None):
            return Focus(problem=beyond.name), ""
        if found.name == "missing_information":
            return Focus(asks=True), ""
        about = _about(found, facts, left)
        for problem in wrong:
            if tool := next((tool for tool in problem.tools if tool in about), ""):
                return Focus(problem=problem.name, tool=tool), _argument(found)
        return Focus(tool=next((tool for tool in about if any(tool in p.tools for p in self._book.problems)), "")), ""

    def cells(self, places: Sequence[TaskCell], focus: Focus) -> list[Cell]:
        if any(problem.name == focus.problem and not problem.fixes for problem in self._book.problems):
            return [TO_A_HUMAN]
        stood = {(len(p.problems.names), p.problems.intent, p.problems.persona) for p in places if p.problems}
        return [cell for cell in self._grid if cell in stood] or self._grid

    def same(self, facts: TaskFacts, place: TaskCell) -> str:
        return composition(place.problems.intent, place.problems.names) if place.problems else ""


def _about(found: Blame, facts: TaskFacts, left: Sequence[str]) -> list[str]:
    """The tools that change something which a failure can be about, the likeliest first.

    Those that blame names for what was done, of them those that the references have; else what was left to do.
    """
    if found.name in LEFT_UNDONE:
        return list(left)
    words = re.findall(r"\w+", found.detail.partition(": ")[0])
    named = [word for word in words if facts.tool_kinds.get(word) == "write" or word in facts.user_gold]
    return [tool for tool in named if tool in left] or named or list(left)


def _argument(found: Blame) -> str:
    return found.detail.partition(": ")[2] if found.name == "wrong_argument" else ""


def _attempts(runs: Sequence[Path], domain: str) -> Iterator[tuple[Path, EpisodeRecord]]:
    """The record that counts of each attempt in this domain. Raises UserError where a run was not on training tasks."""
    for run in runs:
        read_config(run)  # says what is wrong with a folder that is no run
        kept = counted(records.read_run(run))
        if kept_for_tests := sorted({one.attempt.task.key for one in kept if held_out(one.attempt.task)}):
            raise UserError(
                f"`{run}` played {len(kept_for_tests)} tasks that are kept for selection or tests, among them "
                f"`{kept_for_tests[0]}`: what is made from their failures would be made for the test",
                hint="name runs on a training split (`--task-split train`, `train-learn`, mock: `synth-train`)",
            )
        yield from ((run, one) for one in kept if one.attempt.task.domain == domain)


def _described(run: Path) -> dict[str, Any]:
    return {
        "run": str(run),
        "digest": read_environment(run, read_config(run))["digest"],
        "episodes_sha256": file_hash(run / "episodes.jsonl"),
    }
