"""The environment of one attempt, as the settings say: its deadlines, and its user with the attempt's own seed."""

from __future__ import annotations

from tau2rl.bench.env import EnvLimits, Tau2Env
from tau2rl.bench.users import make_user
from tau2rl.config import LimitsConfig, UserConfig
from tau2rl.types import Attempt


def make_env(attempt: Attempt, *, user: UserConfig, limits: LimitsConfig) -> Tau2Env:
    """A fresh environment of the attempt's task. Raises TaskFailure (it cannot be played) or UserError (there is none)."""
    cut = EnvLimits(
        max_steps=limits.max_steps,
        step_timeout_seconds=limits.step_timeout_seconds,
        grade_timeout_seconds=limits.grade_timeout_seconds,
    )
    return Tau2Env(attempt.task, make_user=make_user(user, seed=attempt.seed), limits=cut)
