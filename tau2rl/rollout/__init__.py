"""Episodes: the loop, how many at once, in what order, in which processes.

The package can be called, because `tau2rl.rollout` is both the function of the public API and, once any module of the package
is imported, the package: Python binds a subpackage to its parent's attribute of that name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tau2rl.config import LimitsConfig
    from tau2rl.types import Attempt, ChatCodec, Env, Episode, Policy, TaskRef


async def rollout(
    task: TaskRef | Attempt, *, env: Env, policy: Policy, codec: ChatCodec, limits: LimitsConfig | None = None, seed: int = 300
) -> Episode:
    """Play one conversation to its end: the loop that evaluation, data generation and training share.

    An environment is used once, and closed here. Every turn's seed comes from `seed`, or from that of an `Attempt`. Never raises
    for an environment, user simulator or policy that broke: the episode is FAILED, with its `failure`.
    """
    from tau2rl.config import LimitsConfig
    from tau2rl.rollout.episode import run_episode
    from tau2rl.types import Attempt

    attempt = task if isinstance(task, Attempt) else Attempt(task=task, index=0, seed=seed)
    return await run_episode(attempt, env=env, policy=policy, codec=codec, limits=limits or LimitsConfig())


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return rollout(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
