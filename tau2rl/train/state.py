"""A training state on disk: weights, optimizer, random numbers, counters. Written whole or not at all."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from tau2rl.errors import UserError

STATE_FILE = "training_state.pt"
SCHEMA = 2  # of the state; raised when an older one would be read wrongly


def save_state(folder: Path, *, model: nn.Module, parts: dict[str, Any], rng: dict[str, Any] | None = None) -> Path:
    """Write the state of an interrupted training; `parts` is whatever its owner needs (optimizer, step, task sampler).

    Only weights that are trained are kept (all of them, or LoRA's), in their own precision. `rng`: the random numbers of an
    earlier moment (`rng_state`); default: of now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STATE_FILE
    draft = path.with_suffix(".tmp")
    torch.save({"schema": SCHEMA, "weights": trained_weights(model), "parts": parts, "random": rng or rng_state()}, draft)
    os.replace(draft, path)  # a kill in between leaves the previous state
    return path


def load_state(folder: Path, *, model: nn.Module) -> dict[str, Any] | None:
    """Put weights and random numbers back and return `parts`; None when there is no state.

    Raises UserError for a state that is damaged, of another model, or of another version.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    state = _read(path)
    set_weights(model, cast("dict[str, torch.Tensor]", state["weights"]), source=folder)
    _restore_random(state["random"])
    return cast("dict[str, Any]", state["parts"])


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
    hint = f"start again without it: take `{path.parent}` away, or choose another `--name`"
    try:
        state = cast("dict[str, Any]", torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"cannot read the training state `{path}`: {reason}", hint=hint) from None
    if state.get("schema") != SCHEMA:
        raise UserError(f"the training state `{path}` is of another version of tau2rl", hint=hint)
    return state


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
