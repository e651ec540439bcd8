"""One conversation on a tau2 task as `protocols.Env`: opened, stepped and closed on the event loop, each wait with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any

from tau2rl.config import LimitsConfig, UserConfig
from tau2rl.env.agent_bridge import Broke, ConversationEnded, Event, Observed, assistant_message
from tau2rl.env.domain import Domain, domain, keep_what_is_loaded
from tau2rl.env.simulation import Simulation
from tau2rl.env.tasks import judged_by
from tau2rl.env.user_simulator import make_user
from tau2rl.errors import EnvironmentFailure, TaskFailure, UserSimulatorFailure
from tau2rl.protocols import ChatCodec
from tau2rl.reward.score import grade_from_tau2
from tau2rl.types import Actions, Attempt, CallTool, EnvTime, Grade, Message, Opening, Reply, Say, StopReason, TaskRef, Usage

CUT_OFF = "done"  # the gym's own stop tool: ends the conversation and has it graded


class Tau2Env:
    """One conversation on one task (`protocols.Env`). Single use.

    `make_user` gives the user simulator of a simulation; see `user_simulator.py`.
    """

    def __init__(self, task: TaskRef, *, make_user: Callable[[Simulation], Any], limits: LimitsConfig | None = None) -> None:
        self._ref = task
        self._domain: Domain = domain(task.domain)
        self._limits = limits or LimitsConfig()
        self._task = self._domain.task(task)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._coming: asyncio.Future[Event]  # the event that the simulation owes us
        self._simulation = Simulation(
            self._domain, self._task, max_steps=self._limits.max_steps, user=make_user, deliver=self._deliver
        )
        self._calls = 0
        self._seconds = 0.0  # waiting for the simulation
        self._ended: ConversationEnded | None = None
        self._broken = False
        if judged := judged_by(self._task):
            raise TaskFailure(f"task `{task.key}` is graded by an LLM judge ({judged}), which is not configured")

    async def open(self) -> Opening:
        """Start the conversation: the greeting, and what the user says to it. Raises EpisodeFailure."""
        self._loop = asyncio.get_running_loop()
        self._coming = self._loop.create_future()
        began = monotonic()
        if not self._simulation.start_at_once():
            # Starting a thread waits until it runs, and it begins with heavy work: not on the event loop.
            await asyncio.to_thread(self._simulation.start)
        self._seconds += monotonic() - began
        event = await self._next(self._limits.step_timeout_seconds)
        if isinstance(event, ConversationEnded):
            raise UserSimulatorFailure("the user ended the conversation before the agent's first turn")
        return Opening(domain_policy=self._domain.policy, messages=_messages(event.new), tools=self._domain.tools)

    async def step(self, actions: Actions) -> Reply:
        """Perform one agent turn and wait for what it brings. Raises EpisodeFailure."""
        if self._ended:
            raise RuntimeError("step() after the conversation ended")
        self._act(self._as_tau2(actions))
        event = await self._next(self._limits.step_timeout_seconds)
        if isinstance(event, Observed):
            return Reply(messages=_messages(event.new))
        return Reply(
            messages=_messages(event.new),
            done=True,
            grade=grade_from_tau2(event.reward_info),
            stop_reason=StopReason(event.termination),
        )

    async def close(self, *, grade: bool) -> Grade | None:
        """End the conversation wherever it stands.

        With `grade`, one that tau2 did not end is ended by the gym's `done` and graded: reward 0, real checks.
        Raises EpisodeFailure when that broke.
        """
        if not grade or self._ended or self._broken or self._loop is None:
            self._broken = self._broken or not self._ended
            self._simulation.abandon()
            return grade_from_tau2(self._ended.reward_info) if self._ended else None
        self._act(assistant_message("", [("cut_off", CUT_OFF, {})]))
        event = await self._next(self._limits.grade_timeout_seconds)
        if isinstance(event, Observed):
            raise EnvironmentFailure("tau2 went on after `done`")
        return grade_from_tau2({**event.reward_info, "reward": 0.0})

    @property
    def user_usage(self) -> Usage:
        """What the user simulator has cost so far."""
        return getattr(self._simulation.user, "usage", Usage())

    @property
    def time(self) -> EnvTime:
        """What it has taken so far. CPU time is known up to the last answer: that of a thread which hangs is not."""
        played = self._simulation
        user = min(self._seconds, played.user_seconds)  # a user that hangs goes on after nobody waits for it
        return EnvTime(seconds=self._seconds, user_seconds=user, cpu_seconds=played.cpu_seconds)

    @property
    def db_hashes(self) -> tuple[str | None, str | None]:
        """tau2's hashes of the (agent, user) database at the end; (None, None) before."""
        return self._ended.db_hashes if self._ended else (None, None)

    @property
    def trajectory(self) -> list[dict[str, Any]]:
        """Every message of both sides as JSON values, in tau2's own layout: what an official replay needs."""
        return [message.model_dump(mode="json", exclude_none=True) for message in self._simulation.trajectory]

    def _act(self, message: Any) -> None:
        assert self._loop is not None
        self._coming = self._loop.create_future()
        self._simulation.act(message)

    async def _next(self, seconds: float) -> Observed | ConversationEnded:
        began = monotonic()
        try:
            async with asyncio.timeout(seconds):
                event = await self._coming
        except TimeoutError:
            self._broken = True
            self._simulation.abandon()
            doing = self._simulation.doing
            kind = UserSimulatorFailure if "user" in doing else EnvironmentFailure
            raise kind(f"no answer within {seconds:g} s while {doing}") from None
        except asyncio.CancelledError:
            self._broken = True
            self._simulation.abandon()
            raise
        finally:
            self._seconds += monotonic() - began
        if isinstance(event, Broke):
            self._broken = True
            raise event.error
        if isinstance(event, ConversationEnded):
            self._ended = event
        return event

    def _deliver(self, event: Event) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is gone: the run was stopped while this thread was busy
            self._loop.call_soon_threadsafe(self._arrived, event)

    def _arrived(self, event: Event) -> None:
        if not self._coming.done():  # else its deadline has passed
            self._coming.set_result(event)

    def _as_tau2(self, actions: Actions) -> Any:
        calls: list[tuple[str, str, dict[str, Any]]] = []
        for action in actions:
            if isinstance(action, CallTool):
                calls.append((f"call_{self._calls}", action.name, action.arguments))
                self._calls += 1
        return assistant_message("\n".join(a.text for a in actions if isinstance(a, Say)), calls)


def _messages(tau2_messages: list[Any]) -> tuple[Message, ...]:
    """tau2's messages as the agent sees them."""
    return tuple(
        Message(
            role=m.role,
            content=m.content or "",
            tool_calls=tuple(CallTool(name=c.name, arguments=c.arguments) for c in getattr(m, "tool_calls", None) or ()),
            error=bool(getattr(m, "error", False)),
        )
        for m in tau2_messages
    )


GREETED = (Message(role="assistant", content="Hi! How can I help you today?"), Message(role="user", content="Hello."))


def warm_up(names: Iterable[str], codec: ChatCodec) -> None:
    """Load domains, and encode their policies and tools, before the clock of any episode runs: seconds and tenths of seconds.

    Raises UserError for a domain without data, or a chat template that cannot write a first prompt.
    """
    for name in dict.fromkeys(names):
        loaded = domain(name)
        codec.open(Opening(domain_policy=loaded.policy, messages=GREETED, tools=loaded.tools))
    keep_what_is_loaded()  # a tokenizer brings libraries of its own


def make_env(attempt: Attempt, *, user: UserConfig, limits: LimitsConfig) -> Tau2Env:
    """A fresh environment of the attempt's task. Raises TaskFailure (it cannot be played) or UserError (there is none)."""
    return Tau2Env(attempt.task, make_user=make_user(user, seed=attempt.seed), limits=limits)
