"""A training state on disk: weights, optimiser, random numbers, counters. Written whole or not at all."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from tau2rl.errors import UserError

STATE_FILE = "training_state.pt"


def save_state(folder: Path, *, model: nn.Module, parts: dict[str, Any]) -> Path:
    """Write the state of an interrupted training; `parts` is whatever its owner needs (optimiser, step, curriculum).

    Only weights that are trained are kept (all of them, or LoRA's), in their own precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    weights = {k: v.detach().cpu() for k, v in model.state_dict().items() if k in trained}
    path = folder / STATE_FILE
    draft = path.with_suffix(".tmp")
    torch.save({"weights": weights, "parts": parts, "random": _random_state()}, draft)
    os.replace(draft, path)  # a kill in between leaves the previous state
    return path


def load_state(folder: Path, *, model: nn.Module) -> dict[str, Any] | None:
    """Put weights and random numbers back and return `parts`; None when there is no state. Raises UserError on a foreign one."""
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    state = cast("dict[str, Any]", torch.load(path, map_location="cpu", weights_only=True))
    own = model.state_dict()
    weights = cast("dict[str, torch.Tensor]", state["weights"])
    wrong = [k for k, v in weights.items() if k not in own or own[k].shape != v.shape]
    if wrong:
        raise UserError(f"the training state in `{folder}` is of another model: `{wrong[0]}` does not fit")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    _restore_random(state["random"])
    return cast("dict[str, Any]", state["parts"])


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": devices, "python": [version, list(internal), gauss]}


def _restore_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
