"""How episodes become advantages; pinned here:

- what FAILED is out of the loss and out of the group's mean; what was cut off is, where the config says so;
- a group whose attempts all score the same teaches nothing and is left out; more tasks are played, up to the cap;
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
from tau2rl.env.gold import turn_calls
from tau2rl.errors import PolicyFailure, RunIncomplete
from tau2rl.policy.scripted import ScriptedPolicy
from tau2rl.recipes.rounds import Group, Player, Round, Tasks, judge
from tau2rl.reward.presets import spec_from
from tau2rl.runs.folder import RunFolder
from tau2rl.types import Actions, CallTool, Completion, Episode, Failure, Fault, Message, Say, Status, TaskRef
from tests.play import CREATE, play

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


def group(episodes: Sequence[Episode], **algo: Any) -> Group:
    chosen = config(algo={"estimator": "dr_grpo", **algo})
    return judge(CREATE, episodes, chosen, spec_from(chosen.reward, max_turns=100, domains=["mock"]))


def test_what_failed_is_in_no_mean_and_no_loss(solved: Episode, unsolved: Episode) -> None:
    found = group([solved, failed(solved), unsolved])
    assert found.scores == (1.0, None, 0.0)
    assert found.advantages == ((0.5,), None, (-0.5,))
    assert len(found.judged()) == 2


def test_what_was_cut_off_counts_or_does_not(solved: Episode, unsolved: Episode) -> None:
    cut = replace(unsolved, status=Status.TRUNCATED)
    assert group([solved, solved, cut, cut]).advantages == ((0.5,), (0.5,), (-0.5,), (-0.5,))
    dropped = group([solved, unsolved, cut, cut], truncated="drop")
    assert dropped.advantages == ((0.5,), (-0.5,), None, None)


def test_a_group_without_variance_teaches_nothing(solved: Episode, unsolved: Episode) -> None:
    assert not group([solved, solved]).teaches
    assert not group([unsolved, failed(solved)]).teaches
    assert group([solved, unsolved]).teaches


def test_the_order_of_a_group_changes_nothing(solved: Episode, unsolved: Episode) -> None:
    one, other = group([solved, unsolved, unsolved]), group([unsolved, solved, unsolved])
    assert sorted(a for a in one.advantages if a) == sorted(a for a in other.advantages if a)


def test_the_sample_ends_with_what_was_sampled_last(solved: Episode, unsolved: Episode) -> None:
    judged = group([solved, unsolved]).judged()[0]
    assert judged.sample.loss_mask[-1] == 1
    assert len(judged.sample.token_ids) == judged.sample.turn_spans[-1][1] <= len(solved.token_ids)
    assert len(judged.sample.turn_spans) == len(solved.turns)


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


def played(folder: Path, chosen: GrpoConfig, policy: Alternating) -> tuple[Round, Tasks]:
    """One round over `create_task_1`, which `Alternating` can solve."""
    tasks = Tasks(refs=[CREATE], config=chosen)
    spec = spec_from(chosen.reward, max_turns=100, domains=["mock"])
    with RunFolder.open(RunFolder.create(folder, chosen, resume=False)) as opened:
        player = Player(config=chosen, codec=CODEC, spec=spec, folder=opened)
        return asyncio.run(player.round(1, tasks, policy)), tasks


def small(**algo: Any) -> GrpoConfig:
    return config(algo=algo, train={"tasks_per_step": 1}, rollout={"num_samples": 2, "concurrency": 1, "retries": 0})


def test_a_round_plays_more_tasks_until_enough_groups_teach(tmp_path: Path) -> None:
    found, tasks = played(tmp_path / "a", small(max_resample_rounds=3), Alternating())
    assert (len(found.groups), len(found.useful), tasks.drawn) == (1, 1, 1)
    found, tasks = played(tmp_path / "b", small(max_resample_rounds=3), Alternating(ever=False))
    assert (len(found.groups), len(found.useful), tasks.drawn) == (4, 0, 4)
    assert found.judged() == []


def test_a_round_tells_what_it_played(tmp_path: Path) -> None:
    numbers = played(tmp_path, small(), Alternating())[0].numbers()
    assert (numbers["success"], numbers["reward/mean"], numbers["groups/useful"]) == (0.5, 0.5, 1)
    assert (numbers["episodes/failed"], numbers["turns/mean"]) == (0, 2.5)  # 2 turns solve it, 3 test the customer's patience


class Gone:
    """A policy whose server is down."""

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        raise PolicyFailure("connection refused")


def test_a_world_that_stays_broken_ends_the_run(tmp_path: Path) -> None:
    chosen = config(rollout={"num_samples": 4, "concurrency": 1, "retries": 0, "give_up_after": 3}, train={"tasks_per_step": 1})
    with pytest.raises(RunIncomplete, match="3 episodes in a row failed"):
        played(tmp_path, chosen, Gone())  # type: ignore[arg-type]
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
    spec = spec_from(chosen.reward, max_turns=100, domains=["mock"])
    with RunFolder.open(RunFolder.create(tmp_path, chosen, resume=False)) as opened:
        player = Player(config=chosen, codec=CODEC, spec=spec, folder=opened)
        found = asyncio.run(player.round(1, Tasks(refs=[CREATE], config=chosen), GoneOnce()))
    assert sum(len(group.episodes) for group in found.groups) == 2
    assert player.costs.episodes == 3


def test_the_place_in_the_tasks_can_be_saved() -> None:
    refs = [TaskRef(domain="mock", task_id=str(i), split="base") for i in range(7)]
    for enabled in (False, True):
        chosen = config(train={"tasks_per_step": 3}, algo={"curriculum": {"enabled": enabled}})
        whole = Tasks(refs=refs, config=chosen)
        first = [whole.next() for _ in range(3)]
        saved = Tasks(refs=refs, config=chosen)
        saved.restore(whole.to_json())
        assert [saved.next() for _ in range(3)] == [whole.next() for _ in range(3)]
        if not enabled:
            assert sorted(ref.task_id for batch in first for ref in batch) == [str(i) for i in range(7)]
