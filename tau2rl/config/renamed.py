"""The names that settings had before, accepted for one release: in files, `--set`, and the stored config of old runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel

# Old name -> new name; of a section, for all that is below it.
RENAMED: dict[str, str] = {
    "train.clip": "train.max_grad_norm",
    "train.min_lr_share": "train.min_lr_ratio",
    "train.eval_every": "train.val_every",
    "train.patience": "train.early_stopping_patience",
    "train.updates_per_batch": "train.num_minibatches",
    "algo.normaliser": "algo.loss_aggregation",
    "algo.constant": "algo.loss_scale",
    "algo.max_refills": "algo.max_resample_rounds",
    "local.micro_tokens": "local.max_tokens_per_microbatch",
    "local.slots": "local.kv_cache_slots",
    "data.held_out": "data.val_fraction",
    "user.patience": "user.max_stalled_turns",
    "slip": "noise_prob",
    "select": "val",
    "slime.outage_seconds": "slime.circuit_breaker_seconds",
}


def with_new_names(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the names of today."""
    current = _copied(values)
    for old, new in RENAMED.items():
        section, _, key = old.rpartition(".")
        place = current.get(section, {}) if section else current
        known = section in model.model_fields if section else new in model.model_fields
        if known and isinstance(place, dict) and key in place:
            cast("dict[str, Any]", place)[new.rpartition(".")[2]] = cast("dict[str, Any]", place).pop(key)
    return current


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copied(cast("Mapping[str, Any]", v)) if isinstance(v, Mapping) else v for k, v in values.items()}
