"""Plays attempts in this process, in tau2's environments, and the line that is kept of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tau2rl.config import EvalConfig, GrpoConfig, RftConfig, SeedConfig
from tau2rl.env.tau2_env import make_env
from tau2rl.reward.presets import RewardSpec
from tau2rl.reward.score import score_episode
from tau2rl.rollout.episode import Limits
from tau2rl.rollout.runner import Outcome, Play, player
from tau2rl.runs.records import SCHEMA
from tau2rl.types import Attempt, ChatCodec, EpisodeRecord, Policy

NO_CONTEXT_LIMIT = 10**9  # the `transcript` protocol counts bytes, not tokens: a context budget means nothing there

Plays = EvalConfig | SeedConfig | RftConfig  # what has tasks, policy, user, chat, limits, rollout and reward
Talks = Plays | GrpoConfig  # what has user, chat and limits
PolicyFor = Callable[[Attempt], Policy]


def player_of(config: Talks, codec: ChatCodec, policies: PolicyFor) -> Play:
    """Plays attempts in this process, in tau2's environments."""
    return player(
        make_env=lambda attempt: make_env(attempt, user=config.user, limits=config.limits),
        make_policy=policies,
        codec=codec,
        limits=episode_limits(config),
    )


def episode_limits(config: Talks) -> Limits:
    """The loop's part of the limits."""
    return Limits(
        max_turns=config.limits.max_turns,
        context_tokens=NO_CONTEXT_LIMIT if config.chat.protocol == "transcript" else config.limits.context_tokens,
        repairs=config.limits.repairs,
        episode_timeout_seconds=config.limits.episode_timeout_seconds,
    )


def record_of(outcome: Outcome, config: Talks, spec: RewardSpec) -> EpisodeRecord:
    """The line that is kept. The bytes of a transcript are no tokens of any model, and are left out."""
    episode = outcome.episode
    return EpisodeRecord(
        schema=SCHEMA,
        run=config.name,
        attempt=outcome.attempt,
        tries=outcome.tries,
        episode=replace(episode, token_ids=()) if config.chat.protocol == "transcript" else episode,
        score=score_episode(episode, spec),
    )
