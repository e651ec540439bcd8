"""A generate function that makes two samples of each attempt, as one that compacts its context would."""

from __future__ import annotations

import copy
from typing import Any

from tau2rl.slime import hooks


async def generate(args: Any, sample: Any, sampling_params: dict[str, Any], evaluation: bool = False) -> list[Any]:
    """The attempt twice, under one rollout id."""
    made = await hooks.generate(args, sample, sampling_params, evaluation=evaluation)
    made.rollout_id = made.index
    twin = copy.deepcopy(made)
    return [made, twin]
