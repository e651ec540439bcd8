"""A recipe: the turn rewards that `tau2rl calibrate` found and froze, as a file with a hash, and the way from it to a table.

{"schema": 1, "values": {"gold": 0.42, "read": 0.0, ...}, "writes_only": false, "accepted": true, "digest": "1f0c...", ...}
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tau2rl.config import AlgoConfig, RewardConfig
from tau2rl.errors import UserError
from tau2rl.reward.tiers import TABLES, Tier, TierTable
from tau2rl.runs.files import read_json, write_json, writing

SCHEMA = 1


def recipe_table(values: Mapping[Tier, float], *, writes_only: bool) -> TierTable:
    """The table of a recipe: each tier has its value and nothing else, as the calibration checked it."""
    return TierTable(values=dict(values), writes_only=writes_only, flat_soft=True)


def write_recipe(file: Path, content: Mapping[str, Any]) -> str:
    """Freeze a recipe; the digest that names it."""
    whole = {"schema": SCHEMA, **content}
    digest = _digest(whole)
    with writing(file):
        write_json(file, {**whole, "digest": digest})
    return digest


def read_recipe(file: Path) -> dict[str, Any]:
    """A recipe that may be trained with. Raises UserError: no recipe, changed since it was frozen, or one that failed."""
    if not file.is_file():
        raise UserError(f"no recipe `{file}`", hint="make one with `tau2rl calibrate RUN... --output FILE`")
    content = read_json(file)
    if content.get("schema") != SCHEMA or not isinstance(content.get("values"), dict):
        raise UserError(f"`{file}` is no recipe of this version", hint="make one with `tau2rl calibrate`")
    if content.get("digest") != _digest({key: value for key, value in content.items() if key != "digest"}):
        raise UserError(f"`{file}` is not what was frozen: its hash is another", hint="make it again with `tau2rl calibrate`")
    if not content.get("accepted"):
        raise UserError(f"`{file}` did not pass its check", hint="look at its `problems`")
    return content


def turn_table(reward: RewardConfig, algo: AlgoConfig) -> TierTable:
    """What a turn is worth: the recipe's table, else that of `algo.turn_rewards`. Raises UserError."""
    return TABLES[algo.turn_rewards] if reward.recipe is None else _table(reward.recipe)


@functools.cache  # an episode asks for it, and a run stands on the file as it was
def _table(file: Path) -> TierTable:
    content = read_recipe(file)
    values = cast("dict[str, float]", content["values"])
    return recipe_table({Tier(name): value for name, value in values.items()}, writes_only=bool(content["writes_only"]))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
