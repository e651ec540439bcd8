"""The parts of the slime backend that need no slime. Pinned here:

- groups are compared among themselves whatever their sizes and order; what is no evidence has no advantage and moves no mean
- an attempt that fanned out into several samples is one member of its group; each sample has the advantage of its attempt
- an estimator of turns gives each token the advantage of its turn, and 0 to what the environment wrote; every sample has a row
- marks say what an episode was, survive JSON, and count from the first sampled token
- an outage begins after so many failures in a row, lets one trial through at a time, ends with it, or ends the run
- work that is called off has ended when its caller goes on
- curves leave out what FAILED and count it; times are means
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.config import AlgoConfig
from tau2rl.errors import RunIncomplete
from tau2rl.reward.advantages import group_advantages
from tau2rl.reward.presets import spec_from
from tau2rl.reward.score import score_episode
from tau2rl.rollout.runner import Outcome
from tau2rl.slime.advantages import Member, score_batch
from tau2rl.slime.metadata import Marks, mark
from tau2rl.slime.rollout import Outage, unless
from tau2rl.slime.rollout_log import look_numbers, round_numbers
from tau2rl.types import Episode, Failure, Fault, Status
from tests.contract.slime_world import ASK, DONE, RIGHT, settings
from tests.play import CREATE, attempt, play

CENTRED = AlgoConfig(estimator="dr_grpo")
PER_TURN = AlgoConfig(estimator="mt_gtpo", gamma=0.5, outcome_weight=0.0)


def member(group: int, number: int, score: float | None, *, length: int = 4, **marks: Any) -> Member:
    status = "failed" if score is None else "completed"
    given = {"task": "mock/a", "domain": "mock", "split": "base", "status": status, "evidence": score is not None, "score": score}
    return Member(marks=Marks(**{**given, "reward": score, **marks}), group=group, attempt=number, length=length)


def test_groups_of_any_size_are_compared_among_themselves() -> None:
    batch = [member(0, 0, 1.0), member(1, 1, 9.0), member(0, 2, 0.0), member(1, 3, 3.0), member(1, 4, 0.0)]
    assert score_batch(batch, CENTRED).rewards == [0.5, 5.0, -0.5, -1.0, -4.0]


def test_what_failed_has_no_advantage_and_moves_no_mean() -> None:
    scored = score_batch([member(0, 0, 1.0), member(0, 1, None), member(0, 2, 0.0)], CENTRED)
    assert scored.rewards == [0.5, 0.0, -0.5] and scored.teaches == [True, False, True]
    assert scored.raw == [1.0, 0.5, 0.0]  # the mean of those that are known: slime's curve stays at 0.5


def test_an_attempt_of_average_worth_is_in_the_mean_of_the_loss() -> None:
    scored = score_batch([member(0, 0, 1.0), member(0, 1, 0.5), member(0, 2, 0.0)], CENTRED)
    assert scored.rewards == [0.5, 0.0, -0.5] and scored.teaches == [True, True, True]


def test_a_group_that_is_all_alike_or_all_failed_teaches_nothing() -> None:
    batch = [member(0, 0, 1.0), member(0, 1, 1.0), member(1, 2, None), member(1, 3, None), member(2, 4, 1.0)]
    scored = score_batch(batch, AlgoConfig(estimator="grpo"))
    assert scored.rewards == [0.0] * 5 and not any(scored.teaches)


def test_an_attempt_that_fanned_out_is_one_member() -> None:
    batch = [member(0, 7, 1.0), member(0, 7, 1.0), member(0, 7, 1.0), member(0, 8, 0.0)]
    assert score_batch(batch, CENTRED).rewards == [0.5, 0.5, 0.5, -0.5]


def test_a_broken_sample_of_an_attempt_does_not_speak_for_it() -> None:
    batch = [member(0, 7, None), member(0, 7, 1.0), member(0, 8, 0.0)]
    assert score_batch(batch, CENTRED).rewards == [0.0, 0.5, -0.5]


def test_each_token_has_the_advantage_of_its_turn() -> None:
    # Returns with gamma 1/2 and the outcome behind the last turn: 1 + (0 + 1/2)/2 = 1.25, 0.5 for the first; 0, 0 for the second.
    spans = ((0, 0, 2), (1, 5, 6))
    batch = [
        member(0, 0, 1.0, length=8, spans=spans, turn_rewards=(1.0, 0.0)),
        member(0, 1, 0.0, length=8, spans=spans, turn_rewards=(0.0, 0.0)),
        member(0, 2, None, length=3),
    ]
    scored = score_batch(batch, PER_TURN)
    assert scored.tokens is not None
    assert [[round(value, 5) for value in row] for row in scored.tokens] == [
        [1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
        [-1.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0],
    ]
    assert [round(value, 5) for value in scored.rewards] == [1.0, -1.0, 0.0]  # of the outcome alone, for the curves


def test_a_sample_with_a_part_of_the_turns_has_the_advantages_of_that_part() -> None:
    turns = {"turn_rewards": (1.0, 0.0, 0.0)}
    batch = [
        member(0, 0, 1.0, length=2, spans=((0, 0, 2),), **turns),
        member(0, 0, 1.0, length=3, spans=((2, 1, 3),), **turns),
        member(0, 1, 0.0, length=1, spans=((0, 0, 1),), turn_rewards=(0.0, 0.0, 1.0)),
    ]
    first, later, _ = score_batch(batch, PER_TURN).tokens or []
    whole = group_advantages([1.0, 0.0], [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)], PER_TURN)[0]
    assert whole is not None and first == [whole[0]] * 2 and later == [0.0, whole[2], whole[2]]


# Marks


@pytest.fixture(scope="module")
def solved() -> Episode:
    return play((ASK, RIGHT, DONE), ref=CREATE, codec=NativeCodec(ByteTokenizer()))


def marks_of(episode: Episode, *, drop_truncated: bool = False) -> Marks:
    score = score_episode(episode, spec_from(settings().reward, max_turns=100, domains=["mock"]))
    return mark(Outcome(attempt=attempt(), episode=episode), score, (), drop_truncated=drop_truncated)


def test_marks_say_what_an_episode_was(solved: Episode) -> None:
    marks = marks_of(solved)
    assert (marks.task, marks.status, marks.evidence, marks.solved) == ("mock/create_task_1", "completed", True, True)
    assert (marks.reward, marks.score, marks.turns, marks.refused, marks.tries) == (1.0, 1.0, 3, 0, 1)
    assert marks.user_messages == 2  # the call went to the environment, the two texts to the user
    assert Marks.from_json(json.loads(json.dumps(marks.to_json()))) == marks


def test_spans_begin_where_the_response_does(solved: Episode) -> None:
    first = solved.turns[0].start
    assert marks_of(solved).spans == tuple((i, t.start - first, t.end - first) for i, t in enumerate(solved.turns))
    assert marks_of(solved).spans[0][1] == 0


def test_what_is_no_evidence_has_no_score(solved: Episode) -> None:
    failure = Failure(fault=Fault.USER, kind="UserSimulatorFailure", message="gone " * 100)
    failed = marks_of(replace(solved, status=Status.FAILED, grade=None, failure=failure))
    assert (failed.evidence, failed.solved, failed.reward, failed.score, failed.fault) == (False, None, None, None, "user")
    assert failed.failure.startswith("UserSimulatorFailure: gone") and len(failed.failure) == 200
    cut = replace(solved, status=Status.TRUNCATED)
    assert marks_of(cut).evidence and not marks_of(cut, drop_truncated=True).evidence
    assert marks_of(cut, drop_truncated=True).score is None
    assert not marks_of(replace(solved, turns=())).evidence


# Outage

FAILED = Failure(fault=Fault.USER, kind="UserSimulatorFailure", message="connection refused")


class Clock:
    """Time that passes when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def outage(clock: Clock, *, after: int = 3) -> Outage:
    return Outage(after=after, deadline_seconds=100.0, pause_seconds=10.0, clock=clock)


def test_failures_in_a_row_make_an_outage_and_a_success_between_does_not() -> None:
    found = outage(Clock())
    found.failed(FAILED, attempt="a", tries=2)
    found.well(trial=False)
    found.failed(FAILED, attempt="a", tries=2)
    assert not found.on
    found.failed(FAILED, attempt="b")
    assert found.on


def test_an_attempt_that_is_played_again_and_again_makes_no_outage_by_itself() -> None:
    found = outage(Clock())
    for _ in range(10):
        found.failed(FAILED, attempt="a", tries=2)
    assert not found.on


def test_one_trial_at_a_time_and_its_success_ends_the_outage() -> None:
    clock = Clock()
    found = outage(clock, after=1)

    async def main() -> None:
        found.failed(FAILED, attempt="a")
        waiting = asyncio.create_task(take())
        await asyncio.sleep(0.3)
        assert not waiting.done()  # the pause before the first trial
        clock.now = 10.0
        async with found.seat() as trial:
            assert trial
            await asyncio.sleep(0.6)
            assert not waiting.done()  # somebody is trying
            found.well(trial=False)  # an episode that had begun before
            assert found.on
            found.well(trial=True)
        assert not found.on and await waiting is False

    async def take() -> bool:
        async with found.seat() as trial:
            return trial

    asyncio.run(main())


def test_a_failed_trial_leaves_the_seat_to_the_next_after_a_pause() -> None:
    clock = Clock()
    found = outage(clock, after=1)

    async def main() -> None:
        found.failed(FAILED, attempt="a")
        clock.now = 10.0
        async with found.seat():
            found.failed(FAILED, attempt="a")
        next_one = asyncio.create_task(seated())
        await asyncio.sleep(0.3)
        assert not next_one.done()
        clock.now = 20.0
        assert await next_one

    async def seated() -> bool:
        async with found.seat() as trial:
            return trial

    asyncio.run(main())


def test_an_outage_that_lasts_ends_the_run_with_the_reason() -> None:
    clock = Clock()
    found = outage(clock, after=1)

    async def main() -> None:
        found.failed(FAILED, attempt="a")
        clock.now = 100.0
        with pytest.raises(RunIncomplete, match="nothing has worked for 100 s: UserSimulatorFailure: connection refused"):
            async with found.seat():
                pass

    asyncio.run(main())


# Stopping


def test_work_that_is_called_off_has_ended_when_the_caller_goes_on() -> None:
    steps: list[str] = []

    async def work() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            steps.append("closed")
        return "never"

    async def main() -> None:
        stop = False

        async def caller() -> str | None:
            found = await unless(lambda: stop, work(), look_seconds=0.01)
            steps.append("caller")
            return found

        task = asyncio.create_task(caller())
        await asyncio.sleep(0.05)
        stop = True
        assert await task is None

    asyncio.run(main())
    assert steps == ["closed", "caller"]


def test_the_result_and_the_exception_of_the_work_come_through() -> None:
    async def works() -> int:
        return 5

    async def breaks() -> int:
        raise RunIncomplete("over")

    assert asyncio.run(unless(lambda: False, works())) == 5
    assert asyncio.run(unless(lambda: True, works())) is None
    with pytest.raises(RunIncomplete, match="over"):
        asyncio.run(unless(lambda: False, breaks()))


def test_who_is_cancelled_cancels_the_work() -> None:
    ended: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def main() -> None:
        task = asyncio.create_task(unless(lambda: False, work()))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended == [True]


# Curves


def test_curves_leave_out_what_failed_and_count_it() -> None:
    batch = [
        member(0, 0, 1.0, solved=True, turns=2, user_seconds=3.0, user_messages=2, domain="retail", policy_seconds=4.0),
        member(0, 1, 0.0, solved=False, turns=4, user_seconds=1.0, user_messages=2, domain="telecom", fault="agent", tries=2),
        member(0, 2, None, fault="user"),
    ]
    played = [*(m.marks for m in batch), Marks(task="mock/a", domain="mock", split="base", status="aborted")]
    numbers = round_numbers(played, batch, settings())
    assert (numbers["success"], numbers["score/mean"], numbers["turns/mean"]) == (0.5, 0.5, 3.0)
    assert (numbers["domain/retail/success"], numbers["domain/telecom/success"]) == (1.0, 0.0)
    counts = ("episodes/played", "episodes/failed", "episodes/aborted", "episodes/tried_again", "fault/user", "fault/agent")
    assert [numbers[name] for name in counts] == [3, 1, 1, 1, 1, 1]
    assert (numbers["seconds/user_message"], numbers["seconds/policy_turn"]) == (1.0, 4.0 / 6)
    assert (numbers["groups/trained"], numbers["groups/useful"]) == (1, 1)


def test_a_round_without_evidence_has_no_means() -> None:
    numbers = round_numbers([member(0, 0, None).marks], [member(0, 0, None)], settings())
    assert numbers["success"] is None and numbers["seconds/user_message"] is None and numbers["episodes/failed"] == 1


def test_a_look_counts_successes_of_what_could_be_judged() -> None:
    looked = [
        member(0, i, score, solved=None if score is None else score == 1.0).marks for i, score in enumerate([1.0, 0.0, None])
    ]
    assert look_numbers(looked) == {"val/pass@1": 0.5, "val/episodes": 2, "val/failed": 1, "val/mock/pass@1": 0.5}
