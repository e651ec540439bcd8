"""The names that settings had before, accepted for one release: in files, `--set`, options and the stored config of old runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

from pydantic import BaseModel

from tau2rl.config.fields import every_setting, known_names
from tau2rl.errors import UserError

# Old name -> new name, None for a setting that is gone; of a section, for all that is below it. A row counts where a config
# class lacks the old name and, unless it is None, has the new one.
RENAMED: dict[str, str | None] = {
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
    "policy.hedge_seconds": None,
    "local.shape": None,  # where no model is made
}


class SettingRenamed(FutureWarning):
    """A setting was given by a name that the next release will not know."""


def old_names(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Each old name of a setting of `model` with the name that it has now, those below a renamed section included."""
    for old, new in _rows(model):
        for setting in every_setting(model):
            if new is not None and (setting.name == new or setting.name.startswith(f"{new}.")):
                yield old + setting.name.removeprefix(new), setting.name


def with_new_names(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the names of today, with one warning that names them. Raises UserError where both names are given."""
    current = _copied(values)
    told: list[str] = []
    for old, new in _rows(model):
        place, key = _section(current, old), old.rpartition(".")[2]
        if place is None or key not in place:
            continue
        value = place.pop(key)
        if new is None:
            told += [f"`{old}` is gone, and has no effect"] if value is not None else []
            continue
        told.append(f"`{old}` is now `{new}`")
        target, name = _section(current, new, make=True), new.rpartition(".")[2]
        if target is None or name in target:
            raise UserError(f"`{old}` is the old name of `{new}`, and both are given", hint=f"leave out `{old}`")
        target[name] = value
    if told:
        warnings.warn("; ".join(told), SettingRenamed, stacklevel=2)
    return current


def new_name(model: type[BaseModel], name: str) -> str:
    """The name of today for a dotted name.

    >>> from tau2rl.config import GrpoConfig
    >>> new_name(GrpoConfig, "select.limit"), new_name(GrpoConfig, "train.lr")
    ('val.limit', 'train.lr')
    """
    for old, new in _rows(model):
        if new is not None and (name == old or name.startswith(f"{old}.")):
            return new + name.removeprefix(old)
    return name


def _rows(model: type[BaseModel]) -> list[tuple[str, str | None]]:
    names = set(known_names(model))
    return [
        (old, new)
        for old, new in RENAMED.items()
        if old not in names and (new in names or (new is None and old.partition(".")[0] in names))
    ]


def _section(values: dict[str, Any], name: str, *, make: bool = False) -> dict[str, Any] | None:
    """The mapping that holds the last part of a dotted name, if it is there or may be made."""
    for part in name.split(".")[:-1]:
        inner = values.setdefault(part, {}) if make else values.get(part)
        if not isinstance(inner, dict):
            return None
        values = cast("dict[str, Any]", inner)
    return values


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested mappings, so that the caller's keep their names."""
    return {k: _copied(cast("Mapping[str, Any]", v)) if isinstance(v, Mapping) else v for k, v in values.items()}
