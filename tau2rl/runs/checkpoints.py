"""Where a training keeps its models: below `checkpoints/`, in Hugging Face's layout, by the number of steps behind them.

`step_00020` is the local trainer's; `hf/19` is slime's, which counts rollouts from 0; `final` is the last of either, `selected` a
link to the one that `tau2rl select-checkpoint` chose; `initial` is what a tiny model started from; `state` (local) and `megatron`
(slime) are what an interrupted training goes on from.
"""

from __future__ import annotations

import re
from pathlib import Path

from tau2rl.config import GrpoConfig, SftConfig
from tau2rl.errors import UserError
from tau2rl.runs.folder import read_config
from tau2rl.runs.reports import REPORT, read_report

INITIAL, FINAL, SELECTED, STATE, MEGATRON = "initial", "final", "selected", "state", "megatron"


def exports(step: int, every: int) -> bool:
    """Whether a step leaves a whole checkpoint.

    >>> [step for step in range(1, 7) if exports(step, 3)], exports(1, 0)
    ([3, 6], False)
    """
    return bool(every) and step % every == 0


def named_step(checkpoint: Path) -> int | None:
    """The step that a folder's name says.

    >>> named_step(Path("step_00020")), named_step(Path("hf/19")), named_step(Path("final"))
    (20, 20, None)
    """
    if named := re.fullmatch(r"step_(\d+)", checkpoint.name):
        return int(named[1])
    return int(checkpoint.name) + 1 if checkpoint.parent.name == "hf" and checkpoint.name.isdigit() else None


def step_of(checkpoint: Path, run: Path) -> int:
    """How many steps a checkpoint of a run has behind it, by its name or that of what it links to. Raises UserError."""
    checkpoint = checkpoint.resolve() if checkpoint.is_symlink() else checkpoint
    if (step := named_step(checkpoint)) is not None:
        return step
    if checkpoint.name == FINAL:
        return last_step(run)
    raise UserError(f"the name of `{checkpoint}` does not say its step", hint="`step_00020`, `hf/19` or `final`")


def last_step(run: Path) -> int:
    """The step of `final`: what the report says, because a training can stop early or be extended; else what was asked for."""
    config = read_config(run)
    if not isinstance(config, (GrpoConfig, SftConfig)):
        raise UserError(f"`{run}` is no training", hint="name the folder of an sft or grpo run")
    if (run / REPORT).is_file():
        training = read_report(run / REPORT).get("training", {})
        done = training.get("final_step") or training.get("steps")  # the first where an earlier step than the last is handed on
        return int(done) if done else config.train.steps
    return config.train.steps


def training_run(checkpoint: Path) -> Path | None:
    """The run folder in whose `checkpoints/` a checkpoint lies.

    >>> training_run(Path("/out/grpo/a/checkpoints/hf/19")).as_posix(), training_run(Path("/models/b"))
    ('/out/grpo/a', None)
    """
    return next((parent.parent for parent in checkpoint.absolute().parents if parent.name == "checkpoints"), None)
