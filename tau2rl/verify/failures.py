"""What the agent of earlier runs failed at, by the names of `tau2rl blame`, as clusters that new tasks are made for.

Failures are alike that have one name, are about one tool and argument, or about one rule that the request of their task breaks.
What user, task or infrastructure did is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tau2rl.config import SynthConfig
from tau2rl.env.task_cells import TaskCell, cell_of
from tau2rl.env.tasks import held_out
from tau2rl.errors import UserError
from tau2rl.report.aggregate import counted
from tau2rl.runs import records
from tau2rl.runs.folder import read_config
from tau2rl.runs.provenance import file_hash, read_environment
from tau2rl.synth.compose import REFUSAL
from tau2rl.synth.failure_clusters import Cluster, Failures, Focus, calls_in_words
from tau2rl.types import CallTool, EpisodeRecord, Fault, TaskRef
from tau2rl.verify.blame import Blame, TaskFacts, against_reference, blame, facts_of


def failures_of(runs: Sequence[Path], config: SynthConfig) -> Failures:
    """The failures of runs on training tasks of the config's domain. Raises UserError for others, and where there are none."""
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
        focus, argument = target_of(name, facts, against_reference(record.episode, facts)[1], place)
        keys, places = found.setdefault((name.name, argument, focus), ([], []))
        keys.append(f"{run}: {record.attempt.key}")
        places.append(place)
    if not found:
        raise UserError(
            f"no attempt at a task of {config.domain} failed by the agent's own fault in {', '.join(f'`{run}`' for run in runs)}",
            hint="name runs of this domain, or another `--domain`",
        )
    clusters = [
        Cluster(name=name, argument=argument, focus=focus, cells=_cells(places, focus, config), failures=tuple(sorted(keys)))
        for (name, argument, focus), (keys, places) in found.items()
    ]
    return Failures(
        clusters=tuple(sorted(clusters, key=lambda cluster: (-len(cluster.failures), cluster.key))),
        runs=tuple(_described(run) for run in runs),
        attempts=attempts,
        left_out=dict(sorted(left_out.items())),
        tasks=frozenset((cell_of(ref).user, _calls(facts)) for ref, facts in played.items()),
    )


def target_of(found: Blame, facts: TaskFacts, missing: Sequence[CallTool], place: TaskCell) -> tuple[Focus, str]:
    """What a new task has to exercise, and the wrong argument; `missing`: the reference writes that were not made.

    A task that must be refused is about its rule; any other about the tool that blame names, or the first write that is missing.
    """
    if place.breaks:
        return Focus(rule=place.breaks), ""
    if found.name == "missing_information":
        return Focus(asks=True), ""
    named, _, arguments = found.detail.partition(": ")
    words = [word for word in re.findall(r"\w+", named) if facts.tool_kinds.get(word) == "write"]
    wanted = [call.name for call in missing]
    tool = next((word for word in words if word in wanted), next(iter([*words, *wanted]), ""))
    return Focus(tool=tool), arguments if found.name == "wrong_argument" else ""


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


def _cells(places: Sequence[TaskCell], focus: Focus, config: SynthConfig) -> tuple[tuple[int, str], ...]:
    """The cells of tasks that failed, of those that are asked for; all of those where none of them is."""
    if focus.rule:
        return (REFUSAL,)
    grid = [(writes, burden) for writes in config.writes for burden in config.burdens]
    mine = [cell for cell in grid if any(cell[0] == place.writes and place.burden in ("", cell[1]) for place in places)]
    return tuple(mine or grid)


def _calls(facts: TaskFacts) -> str:
    return calls_in_words([asdict(call) for call in facts.gold if facts.tool_kinds.get(call.name) == "write"])


def _described(run: Path) -> dict[str, Any]:
    return {
        "run": str(run),
        "digest": read_environment(run, read_config(run))["digest"],
        "episodes_sha256": file_hash(run / "episodes.jsonl"),
    }
