"""`tau2rl regrade`: the kept conversations of an evaluation, graded again by tau2 and scored by other reward settings.

No model and no server is asked: each conversation's tool calls are carried out again in a fresh environment. The result is an
evaluation of its own, in a folder of its own, whose `environment.json` names the run that it was made of.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from tau2rl.config import EvalConfig, dump, flatten, load_config
from tau2rl.env.domain import env_identity
from tau2rl.env.grading import grade_again
from tau2rl.env.task_cells import cells_of
from tau2rl.env.tasks import describe, quarantined, select
from tau2rl.errors import EnvironmentFailure, UserError
from tau2rl.recipes.play import floors
from tau2rl.report.report import build_report
from tau2rl.reward.presets import RewardSpec, spec_from
from tau2rl.reward.score import grade_from_tau2, score_episode
from tau2rl.rollouts.runner import planned_attempts
from tau2rl.runs import records
from tau2rl.runs.folder import RunFolder, read_config
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.provenance import differences, environment, file_hash, read_environment
from tau2rl.runs.reports import REPORT, read_report
from tau2rl.types import Episode, Failure, Status, StopReason

MAY_CHANGE = ("reward.", "tasks.exclude_quarantined", "name", "output", "resume")


@dataclass(frozen=True, slots=True, kw_only=True)
class Regraded:
    """What came of it: `Regraded(report={...}, changed=2, data=())`."""

    report: dict[str, Any]
    changed: int  # conversations whose tau2 reward is another one than before
    data: tuple[str, ...]  # dotted names of the benchmark's data that are not those of the run


def config_of(source: Path, sets: Sequence[str], options: Mapping[str, Any]) -> EvalConfig:
    """The settings of the regraded run: those of `source`, with another reward or without quarantined tasks. Raises UserError."""
    before = read_config(source)
    if not isinstance(before, EvalConfig):
        raise UserError(
            f"`{source}` is a run of `{before.stage}`, not an evaluation",
            hint="`tau2rl rft-filter --from` scores the episodes of the other stages again",
        )
    config = load_config(EvalConfig, source / "config.json", sets, {**options, "resume": False})
    if options.get("output") is None:  # that of `source` is taken
        config = config.model_copy(update={"output": None})
    changed = {name for name, _, _ in differences(flatten(dump(before)), flatten(dump(config)))}
    if wrong := sorted(name for name in changed if not name.startswith(MAY_CHANGE)):
        raise UserError(
            f"`{wrong[0]}` decided how the conversations were played, and cannot change now",
            hint="`reward.*` and `tasks.exclude_quarantined` can; for the others, `tau2rl eval` plays again",
        )
    return with_same_tasks(before, config)


def with_same_tasks(before: EvalConfig, config: EvalConfig) -> EvalConfig:
    """The config with its tasks named one by one where others would move up for quarantined ones. Raises UserError."""
    if config.tasks.exclude_quarantined == before.tasks.exclude_quarantined:
        return config
    played = select(before.tasks)
    left = [ref for ref in played if not quarantined(ref)]
    if not left:
        raise UserError("every task of the run is quarantined", hint="`tau2rl tasks list` has the reasons")
    if {ref.key for ref in select(config.tasks)} == {ref.key for ref in left}:
        return config
    tasks = config.tasks.model_copy(update={"ids": tuple(ref.key for ref in left), "limit": None, "skip": 0})
    return config.model_copy(update={"tasks": tasks})


def regrade_run(source: Path, config: EvalConfig, folder: RunFolder, progress: Progress) -> Regraded:
    """Grade every record of `source` into the folder, and write its report. Raises UserError."""
    spec = spec_from(config.reward, max_turns=config.limits.max_turns, domains=config.tasks.domains)
    tasks = select(config.tasks)
    stood_on = read_environment(source, read_config(source))
    bench = env_identity(config.tasks, config.user)
    named = {key: value for key, value in stood_on["identity"].items() if key not in ("settings", "bench")}
    parent = {"digest": stood_on["digest"], "episodes": [file_hash(file) for file in records.record_files_of(source)]}
    stands_on = environment(config, bench, {**named, "regraded": parent}, recorded={"regraded_from": str(source)})
    folder.write_environment(stands_on)
    changed = _grade_all(source, folder, {task.key for task in tasks}, spec, progress)
    report = build_report(
        chain(folder.records(), folder.failed_records()),
        planned=planned_attempts(config, tasks),
        repetitions=config.repetitions,
        floors=floors(tasks),
        digest=str(stands_on["digest"]),
        tasks_with_writes={task.key for task in tasks if describe(task).changes_state},
        cells=cells_of(tasks),
    )
    report["cost"] = None  # what the conversations cost is in the report of the run that played them
    report |= {"regraded_from": {"run": str(source), "digest": stood_on["digest"], "changed": changed}}
    if (source / REPORT).is_file() and (access := read_report(source / REPORT).get("test_access")):
        report["test_access"] = access
    folder.write_report(report)
    return Regraded(
        report=report, changed=changed, data=tuple(key for key, *_ in differences(stood_on["identity"].get("bench", {}), bench))
    )


def _grade_all(source: Path, folder: RunFolder, wanted: set[str], spec: RewardSpec, progress: Progress) -> int:
    """Write a record of each; how many have another reward than before."""
    changed = done = solved = valid = 0
    began = time.monotonic()
    for before in records.read_run(source):
        if before.attempt.task.key not in wanted:
            continue
        episode = before.episode if before.episode.status is Status.FAILED else again(before.episode)
        score = score_episode(episode, spec)
        folder.append(replace(before, schema=records.SCHEMA, run=folder.config.name, episode=episode, score=score))
        if episode.grade is not None and before.episode.grade is not None:
            changed += episode.grade.reward != before.episode.grade.reward
            valid, solved = valid + 1, solved + episode.grade.success
        done += 1
        progress(ProgressEvent(done=done, total=None, valid=valid, successes=solved, seconds=time.monotonic() - began))
    return changed


def again(episode: Episode) -> Episode:
    """The episode with the grade of today; FAILED, with the reason, where it cannot be graded any more. Raises UserError."""
    if not episode.trajectory:
        raise UserError(
            f"the record of `{episode.task.key}` has no trajectory of both sides, so tau2 cannot grade it",
            hint="runs of today keep it; play the tasks again with `tau2rl eval`",
        )
    try:
        return replace(episode, grade=grade_from_tau2(grade_again(episode)))
    except EnvironmentFailure as error:
        failure = Failure(fault=error.fault, kind=type(error).__name__, message=str(error))
        return replace(episode, status=Status.FAILED, stop_reason=StopReason.FAILED, grade=None, failure=failure)
