"""How episodes become advantages; pinned here:

- what FAILED is out of the loss and out of the group's mean; what was cut off is, where the config says so;
- a group whose attempts all score the same has no signal and is left out; more tasks are sampled, up to the cap;
- every batch has the same number of groups, over the borders of epochs and with fewer tasks than groups too;
- the order of a group changes nothing, and neither does who ended first;
- an estimator of turns gives every turn its own advantage, from the real reference actions;
- a call that the environment refused is matched with its own turn;
- every try is paid for: what FAILED and was played again is in the costs with what came of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.config import GrpoConfig, build
from tau2rl.env.turn_rewards import turn_calls
from tau2rl.errors import PolicyFailure, RunIncomplete
from tau2rl.policy.scripted import ScriptedPolicy
from tau2rl.protocols import Policy
from tau2rl.reward.presets import spec_from
from tau2rl.runs.folder import RunFolder
from tau2rl.train.group import ScoredGroup, score_group
from tau2rl.train.grpo import Rollouts
from tau2rl.train.metrics import rollout_metrics
from tau2rl.types import Actions, CallTool, Completion, Episode, Failure, Fault, Message, Say, Status, TaskRef
from tests.play import CREATE, UPDATE, play

CODEC = NativeCodec(ByteTokenizer())
RIGHT = (CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Important Meeting"}),)
WRONG = (CallTool(name="create_task", arguments={"user_id": "nobody", "title": "Important Meeting"}),)
DONE = (Say(text="That is done."),)


def config(**values: Any) -> GrpoConfig:
    talk = {"user": {"kind": "scripted"}, "chat": {"tokenizer": "bytes"}, "limits": {"context_tokens": 100_000}}
    given = {"model": {"init": "a/checkpoint"}, "tasks": {"domains": ["mock"], "split": "base"}, **talk}
    return build(GrpoConfig, {**given, "reward": {"preset": "outcome"}, **values})


def episode(*script: Actions) -> Episode:
    return play(script, ref=CREATE, codec=CODEC)


@pytest.fixture(scope="module")
def solved() -> Episode:
    found = episode(RIGHT, DONE)
    assert found.grade is not None and found.grade.success
    return found


@pytest.fixture(scope="module")
def unsolved() -> Episode:
    found = episode(WRONG, DONE)
    assert found.grade is not None and not found.grade.success
    return found


def failed(episode: Episode) -> Episode:
    broken = Failure(fault=Fault.USER, kind="UserSimulatorFailure", message="gone")
    return replace(episode, status=Status.FAILED, grade=None, failure=broken)


def group(episodes: Sequence[Episode], **algo: Any) -> ScoredGroup:
    chosen = config(algo={"estimator": "dr_grpo", **algo})
    return score_group(CREATE, episodes, chosen, spec_from(chosen.reward, max_turns=100, domains=["mock"]))


def test_what_failed_is_in_no_mean_and_no_loss(solved: Episode, unsolved: Episode) -> None:
    found = group([solved, failed(solved), unsolved])
    assert found.scores == (1.0, None, 0.0)
    assert found.advantages == ((0.5,), None, (-0.5,))
    assert len(found.trajectories()) == 2


def test_what_was_cut_off_counts_or_does_not(solved: Episode, unsolved: Episode) -> None:
    cut = replace(unsolved, status=Status.TRUNCATED)
    assert group([solved, solved, cut, cut]).advantages == ((0.5,), (0.5,), (-0.5,), (-0.5,))
    dropped = group([solved, unsolved, cut, cut], truncated="drop")
    assert dropped.advantages == ((0.5,), (-0.5,), None, None)


def test_a_group_without_variance_has_no_signal(solved: Episode, unsolved: Episode) -> None:
    assert not group([solved, solved]).has_signal
    assert not group([unsolved, failed(solved)]).has_signal
    assert group([solved, unsolved]).has_signal


def test_the_order_of_a_group_changes_nothing(solved: Episode, unsolved: Episode) -> None:
    one, other = group([solved, unsolved, unsolved]), group([unsolved, solved, unsolved])
    assert sorted(a for a in one.advantages if a) == sorted(a for a in other.advantages if a)


def test_the_sample_ends_with_what_was_sampled_last(solved: Episode, unsolved: Episode) -> None:
    trajectory = group([solved, unsolved]).trajectories()[0]
    (sample,) = trajectory.samples
    assert sample.loss_mask[-1] == 1
    assert len(sample.token_ids) == sample.turn_spans[-1][1] <= len(solved.token_ids)
    assert len(sample.turn_spans) == len(solved.turns)


def test_turns_have_advantages_of_their_own(solved: Episode, unsolved: Episode) -> None:
    found = group([solved, unsolved], estimator="mt_grpo")
    # First turn: the reference write against a refused call, +-1, and the outcome, +-1. Later turns: words on both sides, or
    # on one alone, so only the outcome is left.
    first, second = found.advantages
    assert first is not None and second is not None
    assert [round(a, 4) for a in first] == [2.0, 1.0]
    assert [round(a, 4) for a in second] == [-2.0] + [-1.0] * (len(unsolved.turns) - 1)


def test_a_refused_call_is_the_one_that_was_refused(solved: Episode) -> None:
    two = (CallTool(name="get_users", arguments={}),)
    messages = (
        Message(role="user", content="Hi"),
        Message.of(WRONG),
        Message(role="tool", content="Error", error=True),
        Message.of(two),
        Message(role="tool", content="[]"),
    )
    turns = (
        replace(solved.turns[0], actions=WRONG),
        replace(solved.turns[0], actions=two),
        replace(solved.turns[0], actions=DONE),
    )
    found = turn_calls(replace(solved, messages=messages, turns=turns))
    assert [[c.error for c in turn.calls] for turn in found] == [[True], [False], []]


class Alternating:
    """An agent that creates the task in every second conversation, and says something in the others."""

    def __init__(self, *, ever: bool = True) -> None:
        self.ever = ever
        self.sessions: dict[str, ScriptedPolicy] = {}

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        if session not in self.sessions:
            acts = self.ever and len(self.sessions) % 2 == 0
            self.sessions[session] = ScriptedPolicy((RIGHT, DONE) if acts else (DONE, DONE), CODEC)
        return await self.sessions[session].complete(prompt_ids, seed=seed, session=session, max_tokens=max_tokens)


def played(
    folder: Path, chosen: GrpoConfig, policy: Policy, *, tasks: Sequence[TaskRef] = (CREATE,), steps: int = 1
) -> tuple[list[list[ScoredGroup]], Rollouts]:
    """The groups of each step, by default over `create_task_1`, which `Alternating` can solve."""
    spec = spec_from(chosen.reward, max_turns=100, domains=["mock"])

    async def main(rollouts: Rollouts) -> list[list[ScoredGroup]]:
        return [await rollouts.groups(step, policy) for step in range(1, steps + 1)]

    with RunFolder.open(RunFolder.create(folder, chosen, resume=False)) as opened:
        rollouts = Rollouts(config=chosen, codec=CODEC, spec=spec, folder=opened, tasks=tasks)
        return asyncio.run(main(rollouts)), rollouts


def small(**algo: Any) -> GrpoConfig:
    return config(algo=algo, train={"tasks_per_step": 1}, rollout={"num_samples": 2, "concurrency": 1, "retries": 0})


def test_more_tasks_are_sampled_until_enough_groups_have_a_signal(tmp_path: Path) -> None:
    (groups,), rollouts = played(tmp_path / "a", small(max_resample_rounds=3), Alternating())
    assert ([group.has_signal for group in groups], rollouts.sampler.batches) == ([True], 1)
    (groups,), rollouts = played(tmp_path / "b", small(max_resample_rounds=3), Alternating(ever=False))
    assert ([group.has_signal for group in groups], rollouts.sampler.batches) == ([False] * 4, 4)


def test_a_step_reports_what_it_played(tmp_path: Path) -> None:
    numbers = rollout_metrics(played(tmp_path, small(), Alternating())[0][0])
    assert (numbers["success"], numbers["reward/mean"], numbers["groups/useful"]) == (0.5, 0.5, 1)
    assert (numbers["episodes/failed"], numbers["turns/mean"]) == (0, 2.5)  # 2 turns solve it, 3 make the user give up


@pytest.mark.parametrize(("count", "per_step"), [(3, 2), (2, 3)], ids=["over the border of an epoch", "fewer tasks than groups"])
def test_every_step_has_the_same_number_of_groups(tmp_path: Path, count: int, per_step: int) -> None:
    chosen = config(train={"tasks_per_step": per_step}, rollout={"num_samples": 2, "retries": 0}, limits={"max_turns": 1})
    tasks = [CREATE, UPDATE, TaskRef(domain="mock", task_id="create_task_1_with_env_assertions", split="base")][:count]
    steps, _ = played(tmp_path, chosen, Alternating(), tasks=tasks, steps=count * 2)
    assert [len(groups) for groups in steps] == [per_step] * count * 2
    if per_step <= count:
        assert all(len({group.task for group in groups}) == per_step for groups in steps), "a task is twice in a batch"
    seeds = [episode.seed for groups in steps for group in groups for episode in group.episodes]
    assert len(set(seeds)) == len(seeds), "two attempts are the same one"


class Gone:
    """A policy whose server is down."""

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        raise PolicyFailure("connection refused")


def test_a_world_that_stays_broken_ends_the_run(tmp_path: Path) -> None:
    chosen = config(rollout={"num_samples": 4, "concurrency": 1, "retries": 0, "give_up_after": 3}, train={"tasks_per_step": 1})
    with pytest.raises(RunIncomplete, match="3 episodes in a row failed"):
        played(tmp_path, chosen, Gone())
    assert len((tmp_path / "failures.jsonl").read_text("utf-8").splitlines()) == 3


class GoneOnce(Alternating):
    """One whose server is down when it is first asked."""

    down = True

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        if self.down:
            self.down = False
            raise PolicyFailure("connection refused")
        return await super().complete(prompt_ids, seed=seed, session=session, max_tokens=max_tokens)


def test_every_try_is_paid_for(tmp_path: Path) -> None:
    chosen = config(rollout={"num_samples": 2, "concurrency": 1, "retries": 1}, train={"tasks_per_step": 1})
    (groups,), rollouts = played(tmp_path, chosen, GoneOnce())
    assert sum(len(group.episodes) for group in groups) == 2
    assert rollouts.costs.episodes == 3
