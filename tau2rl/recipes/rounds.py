"""One round of GRPO: which tasks, their groups of episodes, what each episode is worth, and which groups teach something."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from tau2rl.config import GrpoConfig
from tau2rl.data.encoding import pack
from tau2rl.data.task_sampling import CurriculumSpec, CurriculumState, curriculum_spec, draw, observe, outcome
from tau2rl.env.gold import episode_turn_rewards
from tau2rl.errors import RunIncomplete
from tau2rl.hashing import derive_seed
from tau2rl.report.cost import Costs
from tau2rl.reward.advantages import TURN_ESTIMATORS, group_advantages
from tau2rl.reward.presets import RewardSpec
from tau2rl.reward.score import score_episode
from tau2rl.reward.tiers import TABLES
from tau2rl.rollout.players import player_of, record_of
from tau2rl.rollout.runner import Outage, Outcome, outcomes
from tau2rl.runs.folder import RunFolder
from tau2rl.train.batching import epochs
from tau2rl.train.trainer import Judged
from tau2rl.types import Attempt, ChatCodec, Episode, Policy, Status, TaskRef, TrainingSample

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The attempts at one task: `Group(task=..., episodes=(...), worth=(...))`; None = no evidence."""

    task: TaskRef
    episodes: tuple[Episode, ...]  # [group]
    scores: tuple[float | None, ...]  # [group]
    advantages: tuple[tuple[float, ...] | None, ...]  # [group][1 or num_turns]

    @property
    def teaches(self) -> bool:
        """Whether any advantage moves the policy."""
        return any(any(values) for values in self.advantages if values is not None)

    def judged(self) -> list[Judged]:
        """What the trainer sees: the episodes that are evidence."""
        pairs = zip(self.episodes, self.advantages, strict=True)
        return [Judged(sample=sampled(e), advantages=a) for e, a in pairs if a is not None and e.turns]


@dataclass(slots=True, kw_only=True)
class Tasks:
    """Which tasks come next, with a position that can be saved: shuffled epochs, or the curriculum's choice."""

    refs: Sequence[TaskRef]
    config: GrpoConfig
    drawn: int = 0  # batches so far
    curriculum: CurriculumState = field(default_factory=CurriculumState)

    def next(self) -> list[TaskRef]:
        """The tasks of the next batch."""
        config = self.config
        self.drawn += 1
        if config.algo.curriculum.enabled:
            by_key = {ref.key: ref for ref in self.refs}
            count = config.train.tasks_per_step
            names = draw(self.curriculum, list(by_key), count, self._spec(), seed=config.seed, number=self.drawn)
            return [by_key[name] for name in names]
        batches = epochs(len(self.refs), batch_size=config.train.tasks_per_step, seed=config.seed, start=self.drawn - 1)
        return [self.refs[i] for i in next(batches)]

    def learn(self, groups: Sequence[Group]) -> None:
        """Take note of how the groups went."""
        if not self.config.algo.curriculum.enabled:
            return
        found: dict[str, list[bool | None]] = {}
        for group in groups:
            found.setdefault(group.task.key, []).extend(outcome(e) for e in group.episodes)
        self.curriculum = observe(self.curriculum, found, self._spec())

    def to_json(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {"drawn": self.drawn, "curriculum": self.curriculum.to_json()}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on where `to_json` was taken."""
        self.drawn, self.curriculum = int(values["drawn"]), CurriculumState.from_json(values["curriculum"])

    def _spec(self) -> CurriculumSpec:
        return curriculum_spec(self.config.algo.curriculum, group_size=self.config.rollout.num_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Everything that one step played, and what of it is trained on."""

    groups: tuple[Group, ...]
    useful: tuple[Group, ...]

    def judged(self) -> list[Judged]:
        """In a fixed order, whoever ended first."""
        return [judged for group in self.useful for judged in group.judged()]

    def numbers(self) -> dict[str, float | None]:
        """What the curves show of it."""
        episodes = [e for group in self.groups for e in group.episodes]
        evidence = [e for e in episodes if e.status is not Status.FAILED]
        statuses = Counter(e.status for e in episodes)
        scores = [s for group in self.groups for s in group.scores if s is not None]
        return {
            "reward/mean": _mean([e.grade.reward for e in evidence if e.grade]),
            "score/mean": _mean(scores),
            "success": _mean([float(outcome(e) or False) for e in evidence]),
            "groups/tried": len(self.groups),
            "groups/useful": len([g for g in self.groups if g.teaches]),
            "groups/trained": len(self.useful),
            "episodes/failed": statuses[Status.FAILED],
            "episodes/truncated": statuses[Status.TRUNCATED] / max(1, len(evidence)),
            "episodes/malformed": statuses[Status.MALFORMED] / max(1, len(evidence)),
            "turns/mean": _mean([float(len(e.turns)) for e in evidence]),
            "tokens/sampled": sum(turn.end - turn.start for e in episodes for turn in e.turns),
            "calls/refused": _mean([float(e.invalid_calls) for e in evidence]),
        }


@dataclass(slots=True, kw_only=True)
class Player:
    """Plays groups through the one episode loop, and judges them."""

    config: GrpoConfig
    codec: ChatCodec
    spec: RewardSpec
    folder: RunFolder
    costs: Costs = field(default_factory=Costs)
    outage: Outage = field(init=False)

    def __post_init__(self) -> None:
        self.outage = Outage(after=self.config.rollout.give_up_after)

    async def round(self, step: int, tasks: Tasks, policy: Policy) -> Round:
        """The groups of a step; more of them, up to the cap, while too few teach something. Raises RunIncomplete."""
        wanted, groups = self.config.train.tasks_per_step, list[Group]()
        for refill in range(self.config.algo.max_resample_rounds + 1):
            refs = tasks.next()
            groups += await self._groups(step, refill, refs, policy)
            if sum(group.teaches for group in groups) >= wanted:
                break
        tasks.learn(groups)
        useful = [group for group in groups if group.teaches][:wanted]
        return Round(groups=tuple(groups), useful=tuple(useful))

    async def play(self, attempts: Sequence[Attempt], policy: Policy) -> AsyncGenerator[Outcome]:
        """The attempts' episodes as they end. Raises RunIncomplete when nothing but failures comes back."""
        rollout = self.config.rollout
        play = player_of(self.config, self.codec, lambda _: policy)
        episodes = outcomes(attempts, play=play, concurrency=rollout.concurrency, retries=rollout.retries)
        async with aclosing(episodes):
            async for one in episodes:
                for episode in (*one.failed, one.episode):
                    self.costs.add(episode)
                failed = one.episode.status is Status.FAILED
                if failed or rollout.keep:
                    self.folder.append(record_of(one, self.config, self.spec))
                if self.outage.shown_by(one):
                    raise RunIncomplete(f"{self.outage.failed} episodes in a row failed: {one.episode.failure}")
                yield one

    async def _groups(self, step: int, refill: int, refs: Sequence[TaskRef], policy: Policy) -> list[Group]:
        size = self.config.rollout.num_samples
        first = first_index(self.config, step, refill)
        attempts = [
            Attempt(task=ref, index=first + i * size + j, seed=derive_seed(self.config.seed, "grpo", first + i * size + j))
            for i, ref in enumerate(refs)
            for j in range(size)
        ]
        found: dict[int, Episode] = {}
        async with aclosing(self.play(attempts, policy)) as played:
            async for one in played:
                found[one.attempt.index] = one.episode
        return [
            judge(ref, [found[first + i * size + j] for j in range(size)], self.config, self.spec) for i, ref in enumerate(refs)
        ]


def first_index(config: GrpoConfig, step: int, refill: int = 0) -> int:
    """The number of a step's first attempt; those of earlier steps are smaller."""
    drawn = step * (config.algo.max_resample_rounds + 1) + refill
    return drawn * config.train.tasks_per_step * config.rollout.num_samples


def judge(task: TaskRef, episodes: Sequence[Episode], config: GrpoConfig, spec: RewardSpec) -> Group:
    """Scores and advantages of a group; what FAILED, or was cut off where the config drops that, is no evidence."""
    algo = config.algo
    scores_G = [None if _dropped(e, config) else _shaped(e, spec) for e in episodes]
    table = TABLES[algo.turn_rewards]
    rewards_G = [episode_turn_rewards(e, table) for e in episodes] if algo.estimator in TURN_ESTIMATORS else [()] * len(episodes)
    advantages = group_advantages(scores_G, rewards_G, algo)
    return Group(task=task, episodes=tuple(episodes), scores=tuple(scores_G), advantages=tuple(advantages))


def sampled(episode: Episode) -> TrainingSample:
    """An episode up to its last sampled token: what came behind it teaches nothing and would cost a forward pass."""
    whole = pack(episode)
    end = whole.turn_spans[-1][1]
    return TrainingSample(
        token_ids=whole.token_ids[:end],
        loss_mask=whole.loss_mask[:end],
        logprobs=None if whole.logprobs is None else whole.logprobs[:end],
        turn_spans=whole.turn_spans,
    )


def _dropped(episode: Episode, config: GrpoConfig) -> bool:
    cut = episode.status is Status.TRUNCATED and config.algo.truncated == "drop"
    return episode.status is Status.FAILED or cut or not episode.turns


def _shaped(episode: Episode, spec: RewardSpec) -> float | None:
    score = score_episode(episode, spec)
    return None if score is None else score.shaped


def _mean(values: Sequence[float] | Iterator[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None
