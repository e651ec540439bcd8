"""Plays one attempt in this process: its environment, the policy and the codec of the settings; and the record of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tau2rl.config import EvalConfig, GrpoConfig, LimitsConfig, RftConfig, SeedConfig
from tau2rl.env.tau2_env import make_env
from tau2rl.reward.presets import RewardSpec
from tau2rl.reward.score import score_episode
from tau2rl.rollout.runner import Outcome, PlayAttempt, play_with
from tau2rl.runs.records import SCHEMA
from tau2rl.types import Attempt, ChatCodec, EpisodeRecord, Policy

NO_CONTEXT_LIMIT = 10**9  # the `transcript` protocol counts bytes, not tokens: a context budget means nothing there

SamplingStage = EvalConfig | SeedConfig | RftConfig  # the stages whose agent is not trained meanwhile
EpisodeConfig = SamplingStage | GrpoConfig  # whatever says how an episode is played
PolicyFor = Callable[[Attempt], Policy]


def episode_runner(config: EpisodeConfig, codec: ChatCodec, policy_for: PolicyFor) -> PlayAttempt:
    """Plays attempts as the settings say: tau2's environment with their user simulator, and their limits."""
    return play_with(
        make_env=lambda attempt: make_env(attempt, user=config.user, limits=config.limits),
        make_policy=policy_for,
        codec=codec,
        limits=episode_limits(config),
    )


def episode_limits(config: EpisodeConfig) -> LimitsConfig:
    """The limits of the loop."""
    if config.chat.protocol == "transcript":
        return config.limits.model_copy(update={"context_tokens": NO_CONTEXT_LIMIT})
    return config.limits


def record_of(outcome: Outcome, config: EpisodeConfig, spec: RewardSpec) -> EpisodeRecord:
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
