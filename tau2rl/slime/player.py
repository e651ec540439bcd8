"""Who plays the attempts of a job: the same in the rollout process and in each of its workers."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tau2rl import plugins, settings
from tau2rl.chat import make_codec
from tau2rl.config import GrpoConfig, PolicyConfig, SamplingConfig, UserConfig
from tau2rl.env.tau2_env import make_env, warm_up
from tau2rl.env.user_simulator import check_key
from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.rollout.runner import play_with
from tau2rl.rollout.worker_process import PlayWith
from tau2rl.types import Attempt, Completion, Episode, Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What stays the same as long as the job lives: `World(config=..., router="http://10.0.0.5:3000", user=..., tokenizer=...)`.

    It is pickled for workers, and holds no key: each process reads the keys that it needs itself.
    """

    config: GrpoConfig
    router: str  # URL of the policy's servers
    user: UserConfig  # with the address of the server that the job started, where it serves the customer
    tokenizer: str  # for settings that name none
    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))  # where the process that made it looks for modules


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What differs between the calls of slime's hook: `Rules(sampling=SamplingConfig(temperature=1.0), context_tokens=20480)`."""

    sampling: SamplingConfig
    context_tokens: int


class Player:
    """Plays attempts in this process, on one event loop. To make one takes seconds: domains, tokenizer."""

    def __init__(self, world: World) -> None:
        """Raises UserError for a key that is missing, a domain, a tokenizer or a chat template that cannot be used."""
        config = world.config
        plugins.search(world.path)
        plugins.import_all(config.plugins)
        if world.user.kind == "llm":
            check_key(world.user)
        self._world = world
        self._codec = make_codec(config.chat.model_copy(update={"tokenizer": config.chat.tokenizer or world.tokenizer}))
        self._policies: dict[SamplingConfig, SGLangPolicy] = {}
        warm_up((*config.tasks.domains, *(config.val.domains if config.train.val_every else ())), self._codec)

    async def play(self, attempt: Attempt, rules: Rules, *, alive: Callable[[], None] | None = None) -> Episode:
        """Play an attempt once. `alive` is called when user, environment and policy have all answered, long before the end."""
        config, served = self._world.config, self._policy(rules.sampling)
        policy = served if alive is None else _Pulse(served, alive)
        play = play_with(
            make_env=lambda attempt: make_env(attempt, user=self._world.user, limits=config.limits),
            make_policy=lambda _: policy,
            codec=self._codec,
            limits=config.limits.model_copy(update={"context_tokens": min(rules.context_tokens, config.limits.context_tokens)}),
        )
        return await play(attempt)

    async def aclose(self) -> None:
        """Close the connections to the policy."""
        for policy in self._policies.values():
            await policy.aclose()

    def _policy(self, sampling: SamplingConfig) -> SGLangPolicy:
        if sampling not in self._policies:
            self._policies[sampling] = SGLangPolicy(
                PolicyConfig(url=self._world.router, sampling=sampling),
                stop=self._codec.stop,
                stop_token_ids=self._codec.stop_token_ids,
                concurrency=self._world.config.rollout.concurrency,
            )
        return self._policies[sampling]


@asynccontextmanager
async def open_in_worker(world: World) -> AsyncGenerator[PlayWith]:
    """What a worker does before its first episode; it is another process, perhaps on another machine."""
    settings.load_secrets()
    settings.quiet_libraries()
    made = Player(world)
    try:
        yield made.play
    finally:
        await made.aclose()


class _Pulse:
    """A policy that says when its second turn is asked for: by then user, environment and policy have all answered once."""

    def __init__(self, policy: Policy, alive: Callable[[], None]) -> None:
        self._policy = policy
        self._alive = alive
        self._begun = False

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        if self._begun:
            self._alive()
        self._begun = True
        return await self._policy.complete(prompt_ids, seed=seed, session=session, max_tokens=max_tokens)
