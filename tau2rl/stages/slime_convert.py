"""Between Megatron's checkpoints and Hugging Face's layout, by slime's own tools: which command that is, and whether it can work.

A training does not need it: slime reads Hugging Face directories, and leaves one beside every save. It is for a save whose export
is missing, and for Megatron's own tools.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tau2rl import settings
from tau2rl.backends.slime.model_shape import read_shape, shape_options
from tau2rl.config import GrpoConfig, SftConfig, SlimeConfig
from tau2rl.errors import UserError
from tau2rl.stages.slime_checkpoints import TRACKER
from tau2rl.store.run import read_config

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
    config = read_config(source)
    if not isinstance(config, SftConfig | GrpoConfig) or config.backend != "slime":
        raise UserError(f"the run in `{source}` was not trained with slime")
    return source / "checkpoints" / "megatron", Path(config.model.init).expanduser()


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
