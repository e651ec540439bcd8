"""The plan of a pipeline, made before anything runs: the config of every step and of every evaluation, in order.

Pure but for reading the config files that a pipeline names. `launch/submit.py` runs the plan; `pipeline_report.py` reports
what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from tau2rl.config import (
    STAGES,
    EvaluationConfig,
    GrpoConfig,
    PipelineConfig,
    SftConfig,
    StageConfig,
    StepConfig,
    build,
    put,
    read_config_file,
)
from tau2rl.errors import UserError
from tau2rl.runs.checkpoints import FINAL, INITIAL

ROWS = {"seed": "rows.jsonl", "rft-filter": "sft.jsonl"}  # what `sft` trains on
TRAINS, PLAYS = ("sft", "grpo"), ("seed", "rft-filter")
SMOKE_STEPS = 5  # optimizer steps under `limit`
BASE = "base"  # the model before any training; `base-STEP` where steps begin with different ones
OURS = ("stage", "name", "output", "resume", "launch")  # settings that a pipeline decides for its steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One run of the chain: `Planned(name="sft", kind="step", config=SftConfig(...), parents=("seed",))`."""

    name: str  # of the step; for an evaluation, of the step whose model it is, or `base`
    kind: Literal["step", "evaluation"]
    config: StageConfig
    parents: tuple[str, ...] = ()  # the steps whose rows, episodes or model it takes in
    begins_as: str | None = None  # the step whose starting checkpoint it starts from, or plays, too
    over: str | None = None  # of an evaluation: the model that this one was trained from, where that is evaluated

    @property
    def label(self) -> str:
        """Its name among all runs: `grpo`, `grpo-eval`."""
        return _label(self.kind, self.name)

    @property
    def folder(self) -> Path:
        """Its run folder."""
        assert self.config.output is not None  # every run of a pipeline is given one
        return self.config.output


def with_files(config: PipelineConfig, directory: Path) -> PipelineConfig:
    """The pipeline with the settings that stand in files taken in, so that it needs no other file. Raises UserError."""
    steps = {name: _taken_in(step, directory) for name, step in config.steps.items()}
    evaluation = None if config.evaluation is None else _taken_in(config.evaluation, directory)
    return config.model_copy(update={"steps": steps, "evaluation": evaluation})


def plan_pipeline(config: PipelineConfig, root: Path) -> list[Planned]:
    """Every run below `root`, in order. Raises UserError for a step that is wrong in itself or names one that is not there."""
    if not config.steps:
        raise UserError("the pipeline has no steps", hint="`configs/laptop/pipeline.yaml` is one")
    planner = _Planner(config, root)
    for name, step in config.steps.items():
        planner.add(name, step)
    models = [planned.name for planned in planner.runs if planned.kind == "evaluation"]
    if strange := [name for name in config.compare if name not in models]:
        raise UserError(
            f"`{strange[0]}` cannot be compared: it is not evaluated", hint=f"evaluated are: {', '.join(models) or 'none'}"
        )
    return planner.runs


class _Planner:
    """Lays one run behind the other, each in its own folder."""

    def __init__(self, config: PipelineConfig, root: Path) -> None:
        self._config = config
        self._root = root
        self._steps: dict[str, Planned] = {}
        self._bases: dict[Path, str] = {}  # checkpoint from which a step begins -> what its evaluation is called
        self.runs: list[Planned] = []

    def add(self, name: str, step: StepConfig) -> None:
        if not name or Path(name).name != name or name == BASE or name.startswith(f"{BASE}-"):
            raise UserError(f"`{name}` cannot name a step", hint=f"a name without `/`, and neither `{BASE}` nor `{BASE}-...`")
        values = deepcopy(step.settings)
        self._take_in(name, step, values)
        parents = tuple(dict.fromkeys([*step.data, *step.sources, *([step.model] if step.model else [])]))
        planned = self._run(name, "step", step.stage, values, parents=parents, begins_as=step.start)
        self._steps[name] = planned
        if step.stage in TRAINS and self._config.evaluation is not None:
            over = step.model if step.model is not None else self._base(planned)
            self._evaluate(name, _final(planned), parents=(name,), over=over)

    def _take_in(self, name: str, step: StepConfig, values: dict[str, Any]) -> None:
        """Put what the step gets from earlier ones into its settings."""
        for parent in step.data:
            self._known(name, parent, tuple(ROWS))
        for parent in step.sources:
            self._known(name, parent, PLAYS)
        for parent in (step.model, step.start):
            if parent is not None:
                self._known(name, parent, TRAINS)
        if step.data:
            rows = [self._steps[p] for p in step.data]
            put(values, "data.files", [str(r.folder / ROWS[_stage(r.config)]) for r in rows])
        if step.sources:
            put(values, "sources", [str(self._steps[p].folder) for p in step.sources])
        if step.model is not None:
            _use_checkpoint(values, step.stage, _final(self._steps[step.model]))
        if step.start is not None:
            if step.model is not None or step.stage not in TRAINS:
                raise UserError(f"step `{name}`: `start` is for a training, in place of `model`")
            _use_checkpoint(values, step.stage, _beginning(self._steps[step.start]))

    def _base(self, planned: Planned) -> str:
        """What the evaluation of the model is called with which a step begins; planned here where it is a new one."""
        checkpoint = _beginning(planned)
        if checkpoint not in self._bases:
            self._bases[checkpoint] = BASE if not self._bases else f"{BASE}-{planned.name}"
            self._evaluate(self._bases[checkpoint], checkpoint, begins_as=planned.name)
        return self._bases[checkpoint]

    def _evaluate(self, name: str, checkpoint: Path, **links: Any) -> None:
        assert self._config.evaluation is not None
        values = deepcopy(self._config.evaluation.settings)
        _use_checkpoint(values, "eval", checkpoint)
        self._run(name, "evaluation", "eval", values, **links)

    def _run(self, name: str, kind: Literal["step", "evaluation"], stage: str, values: dict[str, Any], **links: Any) -> Planned:
        config = self._config
        label = _label(kind, name)
        if config.limit is not None:
            _shorten(values, stage, config.limit)
        given = {
            **values,
            "stage": stage,
            "name": f"{config.name}-{label}",
            "seed": config.seed,
            "output": str(self._root / "runs" / f"{len(self.runs) + 1:02}-{label}"),
            "resume": True,
            "launch": config.launch.model_dump(mode="json"),
            "plugins": list(dict.fromkeys([*config.plugins, *values.get("plugins", ())])),
        }
        try:
            built = build(STAGES[stage], given)
        except UserError as error:
            raise UserError(f"step `{label}`: {error.message}", hint=error.hint) from None
        planned = Planned(name=name, kind=kind, config=built, **links)
        self.runs.append(planned)
        return planned

    def _known(self, name: str, parent: str, stages: tuple[str, ...]) -> None:
        known = [n for n, planned in self._steps.items() if _stage(planned.config) in stages]
        if parent not in known:
            raise UserError(
                f"step `{name}` needs `{parent}`, which is no earlier step that could give it",
                hint=f"of the steps before it: {', '.join(known) or 'none'}",
            )


def _label(kind: Literal["step", "evaluation"], name: str) -> str:
    return name if kind == "step" else f"{name}-eval"


def _taken_in(part: Any, directory: Path) -> Any:
    """A step or an evaluation whose file, if it has one, has become part of its settings."""
    assert isinstance(part, (StepConfig, EvaluationConfig))
    stage = part.stage if isinstance(part, StepConfig) else "eval"
    values = {} if part.file is None else read_config_file(directory / part.file, STAGES[stage])
    if values.get("stage", stage) != stage:
        raise UserError(f"`{part.file}` is of stage `{values['stage']}`, and the step of stage `{stage}`")
    own = {key: value for key, value in values.items() if key not in OURS}
    return part.model_copy(update={"file": None, "settings": _merged(own, part.settings)})


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` in front, section by section.

    >>> _merged({"train": {"lr": 1, "steps": 2}}, {"train": {"lr": 3}})
    {'train': {'lr': 3, 'steps': 2}}
    """
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            out[key] = _merged(cast("Mapping[str, Any]", below), cast("Mapping[str, Any]", value))
        else:
            out[key] = value
    return out


def _use_checkpoint(values: dict[str, Any], stage: str, checkpoint: Path) -> None:
    """Let a run start from a checkpoint, or let the checkpoint be its agent."""
    if stage in TRAINS:
        put(values, "model.init", str(checkpoint))
    else:
        put(values, "policy.kind", "local")
        put(values, "policy.checkpoint", str(checkpoint))


def _shorten(values: dict[str, Any], stage: str, limit: int) -> None:
    """A smoke run of a step: a few tasks, a few steps, and no complaint about having learned nothing."""

    def at_most(name: str, most: int) -> None:
        section, _, key = name.partition(".")
        given = values.get(section, {}).get(key)
        put(values, name, most if given is None else min(int(given), most))

    if stage != "sft" and not values.get("sources"):
        at_most("tasks.limit", limit)
    if stage in TRAINS:
        at_most("train.steps", SMOKE_STEPS)
    if stage == "sft":
        put(values, "data.allow_empty", True)
    if stage == "grpo":
        at_most("train.tasks_per_step", limit)


def _beginning(planned: Planned) -> Path:
    """The checkpoint that a training starts from."""
    assert isinstance(planned.config, (SftConfig, GrpoConfig))
    init = planned.config.model.init
    return planned.folder / "checkpoints" / INITIAL if init == "tiny" else Path(init).expanduser()


def _final(planned: Planned) -> Path:
    return planned.folder / "checkpoints" / FINAL


def _stage(config: StageConfig) -> str:
    return str(config.model_dump(include={"stage"})["stage"])
