"""A training state on disk: weights, optimizer, random numbers, counters. Written whole or not at all."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from tau2rl.errors import RunIncomplete, UserError
from tau2rl.runs.files import replacing

STATE_FILE = "training_state.pt"
BROKEN_FILE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
BROKEN_PICKLE = (pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError, ImportError)
SCHEMA = 2  # of the state; raised when an older one would be read wrongly


def save_state(folder: Path, *, model: nn.Module, parts: dict[str, Any], rng: dict[str, Any] | None = None) -> Path:
    """Write the state of an interrupted training; `parts` is whatever its owner needs (optimizer, step, task sampler).

    Only weights that are trained are kept (all of them, or LoRA's), in their own precision. `rng`: the random numbers of an
    earlier moment (`rng_state`); default: of now. Raises RunIncomplete (disk full), and the state before stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STATE_FILE
    state = {"schema": SCHEMA, "weights": trained_weights(model), "parts": parts, "random": rng or rng_state()}
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch's writer has words of its own for a file that it cannot go on with
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise RunIncomplete(f"cannot write `{path}`: {reason}; what was written before is kept") from None
    return path


def load_state(folder: Path, *, model: nn.Module) -> dict[str, Any] | None:
    """Put weights and random numbers back and return `parts`; None when there is no state.

    Raises UserError for a state that is damaged, of another model, or of another version.
    """
    path = folder / STATE_FILE
    if not os.path.lexists(path):
        return None
    state = _read(path)
    with understood(folder):
        weights: dict[str, torch.Tensor] = state["weights"]
        set_weights(model, weights, source=folder)
        if weights.keys() != trained_weights(model).keys():
            raise UserError(f"the training state in `{folder}` is of another model: not all of its weights are there")
        _restore_random(state["random"])
        return cast("dict[str, Any]", state["parts"])


@contextmanager
def understood(folder: Path) -> Generator[None]:
    """Raises UserError where a part of the state in a folder is missing, or is not what was saved under its name."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the training state in `{folder}` is not one of this training: {type(error).__name__}: {reason}",
            hint=_way_out(folder),
        ) from None


def trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy, on the CPU, of the weights that are trained."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items() if k in trained}


@torch.no_grad()
def set_weights(model: nn.Module, weights: dict[str, torch.Tensor], *, source: object) -> None:
    """Put weights back where `trained_weights` took them. Raises UserError when they are of another model."""
    own = model.state_dict()
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            raise UserError(f"the training state in `{source}` is of another model: `{name}` does not fit")
    for name, value in weights.items():
        own[name].copy_(value)


def _read(path: Path) -> dict[str, Any]:
    hint = _way_out(path.parent)
    try:
        with zipfile.ZipFile(path) as parts:  # torch reads weights without a look at their checksums
            if damaged := parts.testzip():
                raise UserError(f"the training state `{path}` is damaged: the checksum of `{damaged}` differs", hint=hint)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (*BROKEN_FILE, *BROKEN_PICKLE) as error:
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"cannot read the training state `{path}`: {reason}", hint=hint) from None
    if not isinstance(state, dict) or cast("dict[str, Any]", state).get("schema") != SCHEMA:
        raise UserError(f"the training state `{path}` is of another version of tau2rl", hint=hint)
    return cast("dict[str, Any]", state)


def _way_out(folder: Path) -> str:
    return f"start again without it: take `{folder}` away, or choose another `--name`"


def rng_state() -> dict[str, Any]:
    """The random numbers that come next, of torch on every device and of Python."""
    version, internal, gauss = random.getstate()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": devices, "python": [version, list(internal), gauss]}


def _restore_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
