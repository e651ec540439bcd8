"""A group, the attempts at one task: what each scored, and its advantage over the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tau2rl.config import GrpoConfig
from tau2rl.config.kinds import TURN_ESTIMATORS
from tau2rl.data.encoding import pack
from tau2rl.env.turn_rewards import episode_turn_rewards
from tau2rl.reward.advantages import group_advantages
from tau2rl.reward.calibration import turn_table
from tau2rl.reward.presets import RewardSpec
from tau2rl.reward.score import score_episode
from tau2rl.train.trainer import ScoredTrajectory
from tau2rl.types import Attempt, Episode, TaskRef
from tau2rl.verify.blame import is_evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """The attempts at one task: `ScoredGroup(task=..., episodes=(...), scores=(1.0, 0.0), advantages=((0.5,), (-0.5,)))`."""

    task: TaskRef
    episodes: tuple[Episode, ...]  # [group]
    scores: tuple[float | None, ...]  # [group]; None = no evidence, in no loss and no mean
    advantages: tuple[tuple[float, ...] | None, ...]  # [group][1 or num_turns]
    first: int = 0  # the number of the first attempt

    @property
    def has_signal(self) -> bool:
        """Whether any advantage moves the policy: not where all attempts score the same."""
        return any(any(values) for values in self.advantages if values is not None)

    def trajectories(self) -> list[ScoredTrajectory]:
        """What the trainer sees: the episodes that are evidence, those with an advantage of 0 too."""
        members = zip(self.episodes, self.advantages, self.attempts(), strict=True)
        return [
            ScoredTrajectory(samples=pack(e), advantages=a, attempt=attempt)
            for e, a, attempt in members
            if a is not None and e.turns
        ]

    def attempts(self) -> list[str]:
        """Their keys."""
        return [Attempt(task=self.task, index=self.first + i, seed=e.seed).key for i, e in enumerate(self.episodes)]


def score_group(
    task: TaskRef, episodes: Sequence[Episode], config: GrpoConfig, spec: RewardSpec, *, first: int = 0
) -> ScoredGroup:
    """Scores and advantages of a group; what is no evidence has neither. `first`: the number of its first attempt."""
    algo = config.algo
    scores_G = [_score(episode, spec) if is_evidence(episode, algo) else None for episode in episodes]
    turn_rewards_G = [()] * len(episodes)
    if algo.estimator in TURN_ESTIMATORS:
        turn_rewards_G = [episode_turn_rewards(episode, turn_table(config.reward, algo)) for episode in episodes]
    advantages_G = group_advantages(scores_G, turn_rewards_G, algo)
    return ScoredGroup(task=task, episodes=tuple(episodes), scores=tuple(scores_G), advantages=tuple(advantages_G), first=first)


def _score(episode: Episode, spec: RewardSpec) -> float | None:
    score = score_episode(episode, spec)
    return None if score is None else score.shaped
