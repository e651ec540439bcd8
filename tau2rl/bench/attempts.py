"""What an attempt is played in: its environment, as the settings say, and what is loaded before the first one."""

from __future__ import annotations

from collections.abc import Iterable

from tau2rl.bench.domain import domain, keep_what_is_loaded
from tau2rl.bench.env import EnvLimits, Tau2Env
from tau2rl.bench.users import make_user
from tau2rl.config import LimitsConfig, UserConfig
from tau2rl.types import Attempt, ChatCodec, Message, Opening

GREETED = (Message(role="assistant", content="Hi! How can I help you today?"), Message(role="user", content="Hello."))


def warm_up(names: Iterable[str], codec: ChatCodec) -> None:
    """Load domains, and encode their policies and tools, before the clock of any episode runs: seconds and tenths of seconds.

    Raises UserError for a domain without data, or a chat template that cannot write a first prompt.
    """
    for name in dict.fromkeys(names):
        loaded = domain(name)
        codec.open(Opening(policy=loaded.policy, messages=GREETED, tools=loaded.tools))
    keep_what_is_loaded()  # a tokenizer brings libraries of its own


def make_env(attempt: Attempt, *, user: UserConfig, limits: LimitsConfig) -> Tau2Env:
    """A fresh environment of the attempt's task. Raises TaskFailure (it cannot be played) or UserError (there is none)."""
    cut = EnvLimits(
        max_steps=limits.max_steps,
        step_timeout_seconds=limits.step_timeout_seconds,
        grade_timeout_seconds=limits.grade_timeout_seconds,
    )
    return Tau2Env(attempt.task, make_user=make_user(user, seed=attempt.seed), limits=cut)
