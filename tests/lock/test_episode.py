"""The pinned behaviours of the one episode loop, on the real tau2 `mock` domain.

- the greeting is part of the conversation, and a message of several lines arrives whole
- every prompt begins with the one before it and its completion, and its hash proves it
- a malformed turn is answered with a repair request that stays in the history; too many of them are MALFORMED with reward 0
- several tool calls in one turn are all carried out; text beside a call is kept in the message, not sent to the user
- a conversation cut off by turns, context, length, time or tau2's steps is TRUNCATED: reward 0, real checks, no thread left
- a call that is never answered is FAILED, whatever the episode's deadline; a grading that hangs does not stop other episodes
- `done` ends a conversation, the stop token inside a text does not
- a broken user, tool room or grader is FAILED with the right fault, never a reward
- a cancellation is never lost, not even one that comes together with the environment's answer
- the same attempt plays the same episode again
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tau2rl.chat import make_codec
from tau2rl.chat.transcript import TranscriptCodec
from tau2rl.config import ChatConfig, LimitsConfig
from tau2rl.data.encoding import pack
from tau2rl.env.agent_bridge import Observed
from tau2rl.env.scripted_user import ScriptedUser
from tau2rl.env.simulation import Simulation
from tau2rl.errors import PolicyFailure
from tau2rl.hashing import prefix_hash
from tau2rl.policy.scripted import ScriptedPolicy
from tau2rl.rollouts.episode import run_episode
from tau2rl.types import CallTool, Completion, Fault, FinishReason, MalformedKind, Say, Status, TaskRef
from tests.play import CREATE, UPDATE, WIDE, attempt, mock_env, play

CREATE_CALL = CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Important Meeting"})
SOLVED = ((CREATE_CALL,), (Say(text="The task is created."),))


class RawPolicy:
    """Samples given texts as bytes, right or wrong."""

    def __init__(self, *texts: str, finish: FinishReason = FinishReason.STOP) -> None:
        self.texts = list(texts)
        self.finish = finish
        self.prompts: list[list[int]] = []

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        self.prompts.append(list(prompt_ids))
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        return Completion(token_ids=tuple(text.encode()), logprobs=None, finish_reason=self.finish)


def line(codec: TranscriptCodec, *actions: Any) -> str:
    return bytes(codec.write(actions)).decode()


def test_solving_a_task_scores_one() -> None:
    episode = play(SOLVED)
    assert (episode.status, episode.stop_reason) == (Status.COMPLETED, "user_stop")
    assert episode.grade is not None and episode.grade.success and episode.fault is None


def test_the_greeting_opens_the_conversation() -> None:
    episode = play(SOLVED)
    assert [m.role for m in episode.messages[:2]] == ["assistant", "user"]
    assert episode.messages[0].content == "Hi! How can I help you today?"


def test_a_message_of_several_lines_arrives_whole() -> None:
    class TwoLines(ScriptedUser):
        def generate_next_message(self, message: Any, state: Any) -> Any:
            answer, state = super().generate_next_message(message, state)
            answer.content = f"{answer.content}\nsecond line\n\nfourth line: a: b"
            return answer, state

    episode = play(SOLVED, env=mock_env(make=lambda simulation: TwoLines(simulation, max_stalled_turns=3)))
    assert episode.messages[1].content.splitlines()[1:] == ["second line", "", "fourth line: a: b"]


def test_every_prompt_extends_the_one_before_and_its_hash_proves_it() -> None:
    codec = TranscriptCodec()
    policy = RawPolicy(line(codec, CREATE_CALL), "nonsense\n", line(codec, Say(text="Done.")))
    episode = play(policy=policy, codec=codec)
    assert len(policy.prompts) == len(episode.turns) == 3
    for turn, prompt in zip(episode.turns, policy.prompts, strict=True):
        assert list(episode.token_ids[: turn.start]) == prompt
        assert turn.prompt_hash == prefix_hash(prompt)
    for before, after, turn in zip(policy.prompts, policy.prompts[1:], episode.turns, strict=False):
        sampled = list(episode.token_ids[turn.start : turn.end])
        assert after[: len(before) + len(sampled)] == before + sampled


def test_a_packed_episode_trains_on_exactly_what_was_sampled() -> None:
    codec = make_codec(ChatConfig(protocol="native", tokenizer="bytes"))
    episode = play(SOLVED, codec=codec)
    (sample,) = pack(episode)
    trained = [t for t, m in zip(sample.token_ids, sample.loss_mask, strict=True) if m]
    assert trained == [*codec.write((CREATE_CALL,)), *codec.write((Say(text="The task is created."),))]


def test_a_malformed_turn_is_repaired_and_stays_in_the_history() -> None:
    codec = TranscriptCodec()
    episode = play(policy=RawPolicy("{broken\n", line(codec, CREATE_CALL), line(codec, Say(text="Done."))), codec=codec)
    assert episode.status is Status.COMPLETED and episode.grade is not None and episode.grade.success
    assert [t.malformed for t in episode.turns] == [MalformedKind.BAD_JSON, None, None]
    assert episode.messages[2].content.startswith("FORMAT ERROR (bad_json)")
    assert episode.invalid_calls == 1


def test_repairs_are_counted_in_a_row() -> None:
    codec = TranscriptCodec()
    texts = ("{a\n", line(codec, CREATE_CALL), "{b\n", line(codec, Say(text="Done.")))
    assert play(policy=RawPolicy(*texts), codec=codec).status is Status.COMPLETED


def test_too_many_malformed_turns_end_as_malformed_with_real_checks() -> None:
    codec = TranscriptCodec()
    episode = play(policy=RawPolicy(line(codec, CREATE_CALL), "{a\n", "{b\n"), codec=codec)
    assert (episode.status, episode.stop_reason) == (Status.MALFORMED, "malformed")
    assert episode.grade is not None and episode.grade.reward == 0.0
    assert episode.grade.checks is not None and episode.grade.checks.action == (True,) and episode.grade.checks.db == (True,)
    assert episode.fault is Fault.AGENT


def test_several_calls_in_one_turn_are_all_carried_out() -> None:
    users = CallTool(name="get_users", arguments={})
    episode = play((((users, CREATE_CALL)), (Say(text="Done."),)))
    assert [m.role for m in episode.messages[2:5]] == ["assistant", "tool", "tool"]
    assert episode.grade is not None and episode.grade.success


def test_text_beside_a_call_is_kept_and_the_user_does_not_hear_it() -> None:
    episode = play(((Say(text="One moment."), CREATE_CALL), (Say(text="Done."),)))
    assert episode.messages[2].content == "One moment." and episode.messages[2].tool_calls == (CREATE_CALL,)
    assert episode.messages[3].role == "tool"


def test_a_refused_call_is_an_error_message_and_counted() -> None:
    bad = CallTool(name="update_task_status", arguments={"task_id": "task_99", "status": "completed"})
    episode = play(((bad,), (CREATE_CALL,), (Say(text="Done."),)))
    assert episode.messages[3].error and episode.invalid_calls == 1
    assert episode.grade is not None and episode.grade.success


@pytest.mark.parametrize(
    ("limits", "steps", "termination"),
    [
        (LimitsConfig(max_turns=2, context_tokens=10**6), 100, "turns"),
        (LimitsConfig(context_tokens=10), 100, "context"),
        (LimitsConfig(context_tokens=10**6, episode_timeout_seconds=1e-9), 100, "deadline"),
        (WIDE, 4, "max_steps"),
    ],
)
def test_a_conversation_cut_off_is_truncated_with_reward_zero_and_real_checks(
    limits: LimitsConfig, steps: int, termination: str
) -> None:
    users = CallTool(name="get_users", arguments={})
    episode = play(((users,), (users,), (users,)), env=mock_env(max_steps=steps), limits=limits)
    assert (episode.status, episode.stop_reason) == (Status.TRUNCATED, termination)
    assert episode.grade is not None and episode.grade.reward == 0.0
    assert episode.grade.checks is not None and episode.grade.checks.action == (False,)


def test_a_turn_cut_at_its_token_limit_is_truncated_and_not_said() -> None:
    codec = TranscriptCodec()
    policy = RawPolicy(line(codec, Say(text="The task is")), finish=FinishReason.LENGTH)
    episode = play(policy=policy, codec=codec)
    assert (episode.status, episode.stop_reason) == (Status.TRUNCATED, "length")
    assert episode.token_ids[episode.turns[0].start :] == tuple(line(codec, Say(text="The task is")).encode())
    assert episode.turns[0].actions == ()
    assert episode.messages[-1].role == "user"


def test_solving_the_task_and_being_cut_off_is_still_zero() -> None:
    episode = play(
        ((CREATE_CALL,), (CallTool(name="get_users", arguments={}),)), limits=LimitsConfig(max_turns=2, context_tokens=10**6)
    )
    assert episode.grade is not None and episode.grade.reward == 0.0 and episode.grade.checks is not None
    assert episode.grade.checks.db == (True,)


def test_no_thread_outlives_a_cut_off_episode() -> None:
    for _ in range(5):
        play(SOLVED, limits=LimitsConfig(max_turns=1, context_tokens=10**6))
    deadline = time.monotonic() + 10
    while any(t.name.startswith("tau2 ") for t in threading.enumerate()):
        assert time.monotonic() < deadline, "a simulation thread is still alive"
        time.sleep(0.01)


def test_broken_user_is_not_the_models_fault() -> None:
    class Broken(ScriptedUser):
        def generate_next_message(self, message: Any, state: Any) -> Any:
            raise ConnectionError("the user server is down")

    episode = play(SOLVED, env=mock_env(make=lambda simulation: Broken(simulation, max_stalled_turns=3)))
    assert episode.status is Status.FAILED and episode.grade is None
    assert episode.failure is not None and "the user server is down" in episode.failure.message


def test_a_user_that_hangs_is_a_failure_of_the_user() -> None:
    release = threading.Event()

    class Hangs(ScriptedUser):
        def __init__(self, simulation: Simulation, *, max_stalled_turns: int) -> None:
            super().__init__(simulation, max_stalled_turns=max_stalled_turns)
            self.simulation = simulation

        def generate_next_message(self, message: Any, state: Any) -> Any:
            self.simulation.doing = "waiting for the user simulator"
            release.wait(30)
            return super().generate_next_message(message, state)

    try:
        episode = play(
            SOLVED, env=mock_env(make=lambda simulation: Hangs(simulation, max_stalled_turns=3), step_timeout_seconds=1.0)
        )
    finally:
        release.set()
    assert episode.status is Status.FAILED and episode.failure is not None
    assert episode.failure.fault is Fault.USER and "no answer within 1 s" in episode.failure.message


def test_a_grader_that_raises_is_a_failure_and_not_a_zero() -> None:
    raises = TaskRef(
        domain="mock", task_id="create_task_1_with_env_assertions", split="base"
    )  # its assertion raises when nothing was created
    episode = play(((Say(text="No."),),), ref=raises)
    assert episode.status is Status.FAILED and episode.grade is None
    assert episode.failure is not None and episode.failure.fault is Fault.INFRA


def test_a_policy_that_fails_leaves_no_evidence() -> None:
    class Aborted:
        async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
            raise PolicyFailure("the server aborted the request")

    episode = play(policy=Aborted())
    assert episode.status is Status.FAILED and episode.failure is not None and episode.failure.kind == "PolicyFailure"


def test_a_call_that_is_not_answered_in_time_is_the_servers_failure() -> None:
    class Times(RawPolicy):
        async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
            raise PolicyFailure("no completion within 0.05 s")

    episode = play(policy=Times(""), limits=LimitsConfig(context_tokens=10**6, episode_timeout_seconds=1e-9))
    assert (episode.status, episode.grade) == (Status.FAILED, None)
    assert episode.fault is Fault.INFRA


def test_a_grading_that_hangs_does_not_stop_other_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    grade = Simulation._grade

    def hangs(self: Simulation, run: Any) -> dict[str, Any]:
        if self.task.id == UPDATE.task_id:
            release.wait(60)
        return grade(self, run)

    monkeypatch.setattr(Simulation, "_grade", hangs)
    try:
        hung = play(((Say(text="No."),),) * 4, ref=UPDATE, env=mock_env(UPDATE, step_timeout_seconds=0.5))
        assert hung.status is Status.FAILED
        assert play(SOLVED).status is Status.COMPLETED
    finally:
        release.set()


def test_only_done_ends_a_conversation() -> None:
    episode = play(((Say(text="###STOP###"),), (CREATE_CALL,), (Say(text="Done."),)))
    assert episode.stop_reason == "user_stop"
    assert len(episode.turns) == 3
    cookbook = make_codec(ChatConfig(protocol="cookbook", tokenizer="bytes"))
    ended = play(((CREATE_CALL,), (CallTool(name="done", arguments={}),)), codec=cookbook)
    assert (ended.stop_reason, ended.grade is not None and ended.grade.success) == ("agent_stop", True)


def test_the_same_attempt_plays_the_same_episode() -> None:
    first, second = play(SOLVED, ref=UPDATE), play(SOLVED, ref=UPDATE)
    assert first.messages == second.messages and first.token_ids == second.token_ids and first.db_hashes == second.db_hashes


def test_each_turn_and_attempt_has_its_own_seed() -> None:
    seen: list[int] = []

    class Seeds(ScriptedPolicy):
        async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
            seen.append(seed)
            return await super().complete(prompt_ids, seed=seed, session=session, max_tokens=max_tokens)

    codec = TranscriptCodec()

    async def main() -> None:
        for seed in (7, 7, 8):
            await run_episode(attempt(CREATE, seed=seed), env=mock_env(), policy=Seeds(SOLVED, codec), codec=codec, limits=WIDE)

    asyncio.run(main())
    assert seen[:2] == seen[2:4] and len(set(seen)) == 4


def test_a_cancellation_that_comes_with_the_answer_is_not_lost() -> None:
    async def main() -> bool:
        env = mock_env()
        await env.open()
        step = asyncio.create_task(env.step((Say(text="Hello."),)))
        await asyncio.sleep(0)  # it has given the turn to tau2, and waits
        env._arrived(Observed([]))
        step.cancel()
        await asyncio.wait([step])
        return step.cancelled()

    assert asyncio.run(main())


def test_cancelling_an_episode_closes_its_environment() -> None:
    class Waits:
        def __init__(self) -> None:
            self.asked = asyncio.Event()

        async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
            self.asked.set()
            await asyncio.Event().wait()
            raise AssertionError("not reached")

    async def main() -> None:
        policy = Waits()
        task = asyncio.create_task(run_episode(attempt(), env=mock_env(), policy=policy, codec=TranscriptCodec(), limits=WIDE))
        await policy.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    test_no_thread_outlives_a_cut_off_episode()
