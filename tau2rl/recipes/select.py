"""`tau2rl select-checkpoint`: one checkpoint of a training run, chosen by success on tasks that are kept for it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from tau2rl.config import EvalConfig, GrpoConfig, SftConfig
from tau2rl.data.task_sampling import outcome
from tau2rl.env.task_files import source_path
from tau2rl.env.tasks import refuse_leak, select
from tau2rl.errors import UserError
from tau2rl.recipes.test_access import evaluated_checkpoint
from tau2rl.recipes.training import backend_for
from tau2rl.report.aggregate import counted
from tau2rl.report.schema import SCHEMA
from tau2rl.report.selection import RULE, CheckpointChoice, behind, choose_checkpoint
from tau2rl.runs import records
from tau2rl.runs.checkpoints import SELECTED, step_of, training_run
from tau2rl.runs.files import point_link, write_json, writing
from tau2rl.runs.folder import read_config
from tau2rl.runs.provenance import ENVIRONMENT, described_checkpoint, differences, file_hash, is_subject, read_environment
from tau2rl.runs.reports import REPORT, SELECTION, read_report, read_selection
from tau2rl.runs.validation import validations
from tau2rl.types import TaskRef

Shares = dict[str, float]  # task key -> share of attempts that solved it
HOW_TO = (
    "validate while it trains (`--set train.val_every=20`), or evaluate checkpoints with `tau2rl eval --task-split train-select` "
    "and name these runs"
)


@dataclass(slots=True, kw_only=True)
class Found:
    """What there is to choose from."""

    run: Path  # the training run
    source: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])  # the files or runs that the numbers are of
    success: dict[int, Shares] = field(default_factory=dict[int, Shares])  # step -> result, checkpoints that exist alone
    checkpoints: dict[int, Path] = field(default_factory=dict[int, Path])
    start: Shares | None = None  # of the model before training
    gone: list[int] = field(default_factory=list[int])  # steps that were validated, and whose checkpoint was not kept
    unseen: list[int] = field(default_factory=list[int])  # steps whose checkpoint was kept, and that were not validated
    tasks: dict[str, TaskRef] = field(default_factory=dict[str, TaskRef])


def select_checkpoint(folders: Sequence[Path]) -> dict[str, Any]:
    """Choose, write `selection.json` into the training run, link `checkpoints/selected` to the chosen; what was written.

    Raises UserError.
    """
    configs = {folder.absolute(): read_config(folder) for folder in folders}
    trainings = [folder for folder, config in configs.items() if isinstance(config, (GrpoConfig, SftConfig))]
    evaluations = {folder: config for folder, config in configs.items() if isinstance(config, EvalConfig)}
    if len(trainings) > 1:
        raise UserError("checkpoints of one training run are compared here", hint="`tau2rl compare` takes two evaluations")
    if len(trainings) + len(evaluations) < len(configs):
        raise UserError("only runs of `grpo`, `sft` and `eval` can be named here")
    found = _evaluated(evaluations, trainings) if evaluations else _validated(trainings[0])
    _refuse_leaks(found)
    choice = choose_checkpoint(found.success)
    values = _described(found, choice)
    with writing(found.run / SELECTION):
        write_json(found.run / SELECTION, values)
        models, chosen = found.run / "checkpoints", found.checkpoints[choice.chosen]
        point_link(models / SELECTED, _from(models.resolve(), chosen.resolve()))  # of links, where they lead: never to itself
    return values


def _validated(run: Path) -> Found:
    """The validations of a training."""
    found, kept = Found(run=run), _kept(run)
    for step, file in validations(run).items():
        shares = _shares(file, found.tasks)
        found.source.append({"file": file.relative_to(run).as_posix(), "sha256": file_hash(file), "step": step})
        if step == 0:
            found.start = shares
        elif checkpoint := kept(step):
            found.success[step], found.checkpoints[step] = shares, checkpoint
        else:
            found.gone.append(step)
    found.unseen = _unseen(run, kept)
    if not found.source:
        raise UserError(f"`{run}` was never validated", hint=HOW_TO)
    if not found.success:
        raise UserError(
            f"no checkpoint is kept of the steps that `{run}` validated: {', '.join(map(str, found.gone))}",
            hint="keep them with `train.export_every`, the same as `train.val_every`",
        )
    return found


def _kept(run: Path) -> Callable[[int], Path | None]:
    """From a step to the model behind it, where the backend of a training keeps it; None where it was not kept."""
    config = read_config(run)
    assert isinstance(config, (GrpoConfig, SftConfig))  # others were refused
    backend = backend_for(config)
    return lambda step: backend.checkpoint(run, step)


def _unseen(run: Path, kept: Callable[[int], Path | None]) -> list[int]:
    """Steps at which there is a checkpoint and should be a validation.

    slime saves before it validates. A run that ends in between goes on behind the save, and never validates that step.
    """
    config = read_config(run)
    if not isinstance(config, GrpoConfig) or not config.train.val_every:
        return []
    due = range(config.train.val_every, config.train.steps + 1, config.train.val_every)
    taken = validations(run)
    return [step for step in due if step not in taken and kept(step)]


def _shares(file: Path, tasks: dict[str, TaskRef]) -> Shares:
    """Each task's share of successes; what FAILED is no evidence."""
    won: dict[str, list[bool]] = {}
    for record in counted(records.read_records(file)):
        tasks[record.episode.task.key] = record.episode.task
        if (solved := outcome(record.episode)) is not None:
            won.setdefault(record.episode.task.key, []).append(solved)
    return {key: sum(values) / len(values) for key, values in won.items()}


def _evaluated(evaluations: Mapping[Path, EvalConfig], trainings: Sequence[Path]) -> Found:
    """Finished evaluations, one a checkpoint."""
    found, first = Found(run=trainings[0]) if trainings else None, None
    for folder, config in evaluations.items():
        report, identity = _whole_report(folder), read_environment(folder, config)["identity"]
        unequal = [] if first is None else [d[0] for d in differences(first, identity) if not is_subject(d[0])]
        if unequal:
            raise UserError(
                f"`{folder}` did not measure what the others did; these differ: {', '.join(unequal)}",
                hint="evaluate all checkpoints with the same settings",
            )
        first = first or identity
        checkpoint = evaluated_checkpoint(config, str(identity.get("agent", "")))
        run = None if checkpoint is None else training_run(checkpoint)
        if checkpoint is None or run is None:
            raise UserError(
                f"`{folder}` does not say which checkpoint of a training run it evaluated",
                hint="evaluate directories below the `checkpoints/` of the run",
            )
        found = found or Found(run=run)
        if run != found.run:
            raise UserError(
                f"`{folder}` evaluated a checkpoint of `{run}`, not of `{found.run}`", hint="name runs of one training"
            )
        step = step_of(checkpoint, run)
        if step in found.success:
            raise UserError(f"two evaluations of step {step}", hint="name one of them")
        found.success[step], found.checkpoints[step] = _reported(report), checkpoint
        found.source.append({"run": str(folder), "digest": report["digest"], "step": step})
        source = source_path(config.tasks.source) if config.tasks.source else ""
        refs = (
            TaskRef(domain=d, task_id=id, split=config.tasks.split, source=source)
            for d, _, id in (k.partition("/") for k in report["by_task"])
        )
        found.tasks |= {ref.key: ref for ref in refs}
    assert found is not None  # there is an evaluation
    return found


def _whole_report(folder: Path) -> dict[str, Any]:
    """The report of a finished evaluation."""
    if not (folder / REPORT).exists() or (report := read_report(folder / REPORT))["incomplete"]:
        words = ["tau2rl", "eval", "-c", str(folder / "config.json"), "--output", str(folder), "--resume"]
        raise UserError(f"the evaluation in `{folder}` is not complete", hint=f"finish it: `{shlex.join(words)}`")
    return report


def _reported(report: Mapping[str, Any]) -> Shares:
    counts = cast("dict[str, dict[str, int]]", report["by_task"])
    return {key: count["solved"] / count["valid"] for key, count in counts.items()}


def _refuse_leaks(found: Found) -> None:
    config = read_config(found.run)
    refuse_leak(select(config.tasks) if isinstance(config, GrpoConfig) else (), found.tasks.values())


def _described(found: Found, choice: CheckpointChoice) -> dict[str, Any]:
    """`selection.json`. The test-set access log goes on where an earlier selection left it."""
    chosen = next(one for one in choice.candidates if one.step == choice.chosen)
    file = found.run / SELECTION
    return {
        "schema": SCHEMA,
        "run": str(found.run),
        "digest": _digest(found.run),
        "rule": RULE,
        "by": "share of attempts that solved their task (tau2's reward, never shaped)",
        "splits": sorted({ref.split for ref in found.tasks.values()}),
        "tasks": len(choice.tasks),
        "tasks_left_out": list(choice.left_out),
        "source": found.source,
        "candidates": [{**asdict(one), "checkpoint": _from(found.run, found.checkpoints[one.step])} for one in choice.candidates],
        "best": choice.best,
        "chosen": {
            "step": chosen.step,
            "success": chosen.success,
            "se": chosen.se,
            **described_checkpoint(found.checkpoints[chosen.step]),
        },
        "start": _start(found, choice),
        "not_kept": found.gone,
        "without_validation": found.unseen,
        "test_access_log": read_selection(file)["test_access_log"] if file.exists() else [],
    }


def _start(found: Found, choice: CheckpointChoice) -> dict[str, Any] | None:
    """The model before training against what was chosen, where both were validated on the same tasks."""
    if found.start is None or not set(choice.tasks) <= found.start.keys():
        return None
    tasks = list(choice.tasks)
    gap, gap_se = behind(found.start, found.success[choice.chosen], tasks)
    return {"success": fmean(found.start[task] for task in tasks), "gap": gap, "gap_se": gap_se}


def _digest(run: Path) -> str | None:
    """What the training stood on; None for a folder in which it never began."""
    return str(read_environment(run, read_config(run))["digest"]) if (run / ENVIRONMENT).exists() else None


def _from(folder: Path, checkpoint: Path) -> str:
    """A path as it is seen from a folder above it; absolute where it is not below."""
    absolute = checkpoint.absolute()
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else str(absolute)
