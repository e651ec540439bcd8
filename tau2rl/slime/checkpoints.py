"""What a training has saved: where it goes on, which Hugging Face directories are whole, and conversions by slime's own tools.

A training needs no conversion: slime reads Hugging Face directories, and leaves one beside every save. It is for a save whose
export is missing, and for Megatron's own tools.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl import settings
from tau2rl.config import GrpoConfig, SftConfig, SlimeConfig
from tau2rl.errors import UserError
from tau2rl.runs import files
from tau2rl.runs.checkpoints import FINAL
from tau2rl.runs.folder import read_config
from tau2rl.slime.model import read_shape, shape_options

TRACKER = "latest_checkpointed_iteration.txt"  # Megatron writes it last: the checkpoint that it names is whole
PLACES = {True: "rollout/tasks_{}.json", False: "rollout/global_dataset_state_dict_{}.pt"}  # ours for tasks, slime's for rows
PLACE = ("sample_group_index", "sample_index", "tasks")  # slime's numbers of the next group and sample; our sampler's state
INDEX = "model.safetensors.index.json"  # slime writes it last: the Hugging Face directory is whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Saves:
    """What lies where Megatron saves: `Saves(path=..., names=frozenset({"iter_0000049", ...}), tracker="49", ...)`."""

    path: Path
    names: frozenset[str]
    tracker: str | None
    tasks: frozenset[int]  # rollouts behind which the choice of tasks was saved
    rows: frozenset[int] = frozenset()  # and those behind which slime's own place in the rows was


def read_saves(save: Path) -> Saves:
    """Read the folder; one that is not there is empty."""
    tracker = save / TRACKER
    return Saves(
        path=save,
        names=frozenset(item.name for item in save.iterdir()) if save.is_dir() else frozenset(),
        tracker=tracker.read_text("utf-8").strip() if tracker.is_file() else None,
        tasks=_rollouts(save, PLACES[True]),
        rows=_rollouts(save, PLACES[False]),
    )


def steps_done(found: Saves, *, draws_tasks: bool) -> int:
    """The steps that a start does not repeat, 0 for a new run. Raises UserError where slime would begin again in silence.

    `draws_tasks`: whether it goes on with a choice of tasks, or with slime's own place in the rows.

    >>> steps_done(Saves(path=Path("x"), names=frozenset(), tracker=None, tasks=frozenset()), draws_tasks=True)
    0
    """
    if not found.names:
        return 0
    if found.tracker is None:
        raise UserError(
            f"`{found.path}` has no `{TRACKER}`: no checkpoint in it is whole",
            hint=f"to begin again from step 0, remove `{found.path}`",
        )
    if not found.tracker.isdigit():
        raise UserError(
            f"`{found.path / TRACKER}` says `{found.tracker}`: this is not a checkpoint of a training",
            hint="a model to start from is `model.init`, in Hugging Face's layout",
        )
    last = int(found.tracker)
    if f"iter_{last:07}" not in found.names:
        raise UserError(f"`{found.path}` has no `iter_{last:07}`, which `{TRACKER}` names", hint=_earlier(found, draws_tasks))
    if last not in (found.tasks if draws_tasks else found.rows):
        missing = PLACES[draws_tasks].format(last)
        raise UserError(f"`{found.path}` has no `{missing}`: the save was interrupted", hint=_earlier(found, draws_tasks))
    return last + 1


def attempts_done(save: Path, done: int) -> int:
    """The number that the next attempt will have: those of the steps done, dropped and called-off ones too, are smaller."""
    return int(read_place(save, done - 1)["sample_index"]) if done else 0


def read_place(save: Path, rollout: int) -> dict[str, Any]:
    """Where our source of tasks was behind a rollout: all of `PLACE`. Raises UserError for a file that does not say it."""
    path = save / PLACES[True].format(rollout)
    if not path.exists():
        raise UserError(
            f"`{path}` is missing: nobody knows which tasks come behind rollout {rollout}",
            hint=f"name an earlier checkpoint in `{save / TRACKER}`",
        )
    place = files.read_json(path)
    if missing := [name for name in PLACE if name not in place]:
        raise UserError(
            f"`{path}` does not say `{'`, `'.join(missing)}`: another version of tau2rl wrote it",
            hint="go on with that version, or start a new run from the last directory in `checkpoints/hf` (`--model`)",
        )
    return place


def refuse_megatron(start: Path) -> None:
    """Refuse a model to start from that Megatron saved: engines and tokenizers read Hugging Face's layout alone."""
    if (start / TRACKER).is_file() or re.fullmatch(r"iter_\d{7}", start.name):
        command = f"tau2rl convert --to hf {shlex.quote(str(start))} DIRECTORY --origin HF_DIRECTORY"
        raise UserError(
            f"`{start}` is a checkpoint of Megatron's, and training starts from Hugging Face's layout",
            hint=f"slime leaves both; from this one: {command}",
        )


def slime_exports(checkpoints: Path) -> dict[int, Path]:
    """Whole Hugging Face directories by their step, in order; slime counts rollouts from 0, we count steps done."""
    found = {int(item.name) + 1: item for item in (checkpoints / "hf").glob("*") if item.name.isdigit() and is_whole(item)}
    return dict(sorted(found.items()))


def is_whole(export: Path) -> bool:
    """Whether slime ended writing it."""
    return (export / INDEX).is_file() and (export / "config.json").is_file()


def point_final(checkpoints: Path, export: Path) -> Path:
    """Let `checkpoints/final` be an export, so that it is found where every training leaves its model."""
    files.point_link(checkpoints / FINAL, str(export.relative_to(checkpoints)))
    link = checkpoints / FINAL
    return link if link.exists() else export  # a file system without links


def _rollouts(save: Path, place: str) -> frozenset[int]:
    found = (re.search(r"_(\d+)\.\w+$", file.name) for file in save.glob(place.format("*")))
    return frozenset(int(number[1]) for number in found if number)


def _earlier(found: Saves, draws_tasks: bool) -> str:
    places = found.tasks if draws_tasks else found.rows
    whole = [last for last in _iterations(found.names) if last in places]
    if not whole:
        return f"to begin again from step 0, remove `{found.path}`"
    return f"to go on from an earlier one: echo {max(whole)} > {found.path / TRACKER}"


def _iterations(names: Collection[str]) -> list[int]:
    return [int(name[5:]) for name in names if re.fullmatch(r"iter_\d{7}", name)]


TO_HF, TO_MEGATRON = "tools/convert_torch_dist_to_hf.py", "tools/convert_hf_to_torch_dist.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A command and the variables that it needs: `Conversion(command=[...], environment={"PYTHONPATH": ...}, result=...)`."""

    command: list[str]
    environment: dict[str, str]
    result: Path


def to_hf(source: Path, destination: Path, origin: Path | None, slime: SlimeConfig) -> Conversion:
    """From a save of Megatron's, or the run folder that has it, to a Hugging Face directory. Raises UserError.

    `origin` is the checkpoint that the training started from: names, tokenizer and vocabulary are its; a run folder knows it.
    Weights that only `origin` has are not copied: a converted model is the trained one or an error.
    """
    save, known = _save_of(source)
    origin = origin or known
    if origin is None:
        raise UserError("which model the training started from is not known", hint="`--origin DIR`: its Hugging Face directory")
    iteration = _iteration(save)
    shape = read_shape(origin)
    _refuse_taken(destination)
    words = ["--input-dir", iteration, "--output-dir", destination, "--origin-hf-dir", origin, "--vocab-size", shape.vocab]
    return _conversion(TO_HF, words, destination, slime)


def to_megatron(source: Path, destination: Path, slime: SlimeConfig) -> Conversion:
    """From a Hugging Face directory to a checkpoint of Megatron's; needs a GPU. Raises UserError."""
    if (source / TRACKER).exists() or re.fullmatch(r"iter_\d{7}", source.name):
        raise UserError(f"`{source}` is a checkpoint of Megatron's already", hint="`--to hf` is the other way")
    shape = read_shape(source)
    _refuse_taken(destination)
    return _conversion(TO_MEGATRON, [*shape_options(shape), "--hf-checkpoint", source, "--save", destination], destination, slime)


def _conversion(tool: str, words: list[str | Path | int] | list[str | Path], result: Path, slime: SlimeConfig) -> Conversion:
    script = slime.root / tool
    if not script.is_file():
        raise UserError(f"no `{script}`", hint="`--slime-root DIR`: the checkout of slime; conversions run in its container")
    path = [str(slime.megatron), str(slime.root)]
    present = settings.child_environment().get("PYTHONPATH")
    return Conversion(
        command=[settings.python(), str(script), *(str(word) for word in words)],
        environment={"PYTHONPATH": ":".join([*path, *([present] if present else [])]), "CUDA_DEVICE_MAX_CONNECTIONS": "1"},
        result=result,
    )


def _save_of(source: Path) -> tuple[Path, Path | None]:
    """Where the save is, and what a run folder knows of its origin."""
    if not (source / "config.json").is_file() or not (source / "checkpoints").is_dir():
        return source, None
    config, save = read_config(source), source / "checkpoints" / "megatron"
    if not isinstance(config, SftConfig | GrpoConfig) or not save.is_dir():
        raise UserError(f"the run in `{source}` was not trained with slime")
    return save, Path(config.model.init).expanduser()


def _iteration(save: Path) -> Path:
    """The folder of one iteration: the one that is named, else the last whole one."""
    tracker = save / TRACKER
    if tracker.is_file():
        last = tracker.read_text("utf-8").strip()
        save = save / ("release" if last == "release" else f"iter_{int(last):07}" if last.isdigit() else last)
    if not (save / "common.pt").is_file():
        raise UserError(
            f"no checkpoint of Megatron's in `{save}`", hint=f"a folder with `{TRACKER}`, or one of its `iter_*` with `common.pt`"
        )
    return save


def _refuse_taken(destination: Path) -> None:
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"`{destination}` is not empty", hint="name a folder that is not there yet")
