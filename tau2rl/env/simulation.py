"""One tau2 simulation on a thread of its own: its task, environment, user and agent, up to its grade.

tau2's gym runs its orchestrator in a daemon thread and polls it every 10 ms under a lock, without a deadline, and logs what
the thread raises. Here the same orchestrator runs unchanged in the same kind of thread, but its agent hands each observation
over and waits in a queue for the action (`agent_bridge.py`); what the thread raises is handed over too. A thread that hangs is
left behind as a daemon when its deadline passes: it holds no place in any pool, and it ends as soon as it wakes up. A thread
whose conversation has ended is used again (`agent_bridge.py`).
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tau2rl.env.agent_bridge import Abandoned, AgentBridge, Broke, ConversationEnded, Event, run_on_idle, run_on_new
from tau2rl.env.domain import Domain, Hashes
from tau2rl.env.grading import grade
from tau2rl.errors import EnvironmentFailure, EpisodeFailure

from tau2.data_model.message import AssistantMessage
from tau2.data_model.simulation import SimulationRun, TerminationReason
from tau2.data_model.tasks import Task
from tau2.environment.environment import Environment
from tau2.gym.gym_agent import AgentGymEnv, GymAgent
from tau2.orchestrator.orchestrator import Orchestrator
from tau2.user.user_simulator import UserSimulator

T = TypeVar("T")
GRADED = (TerminationReason.AGENT_STOP, TerminationReason.USER_STOP)
# Building and grading an environment is pure CPU work in one GIL. One thread at a time does it, so that the event loop waits
# for the lock behind one of them and not behind all.
_cpu = threading.Lock()
LONGEST_WAIT_SECONDS = 1.0  # it is a courtesy, not a need: who waits longer goes on without it, past a thread that hangs


class Simulation(AgentGymEnv):
    """`AgentGymEnv` with its task, environment, user and agent given, and its thread driven by messages.

    `user` makes the user simulator of this simulation; `deliver` is called in the simulation's thread with each event.
    """

    def __init__(
        self,
        domain: Domain,
        task: Task,
        *,
        max_steps: int,
        user: Callable[[Simulation], UserSimulator],
        deliver: Callable[[Event], None],
    ) -> None:
        super().__init__(domain=domain.registered, task_id=task.id, max_steps=max_steps)
        self.task = task
        self.user: UserSimulator | None = None
        self.last: list[Any] = []
        self.doing = "starting"
        self.loaded = domain
        self.cpu_seconds = 0.0  # of its thread, up to the last event
        self._make_user = user
        self._deliver = deliver
        self._actions: queue.SimpleQueue[AssistantMessage | None] = queue.SimpleQueue()
        self._made: Environment | None = None
        self._hashes: Hashes = (None, None)  # at the end
        self._aside_cpu_seconds = 0.0  # of calls that its thread made in another one
        self._user_seconds = 0.0
        self._asked_at: float | None = None  # when the user was asked who has not yet answered
        self._cpu_before = 0.0  # of its thread, before it was this simulation's

    def start_at_once(self) -> bool:
        """Begin on a thread that has nothing to do; the first event follows. False when there is none."""
        return run_on_idle(self._main, name=self._name)

    def start(self) -> None:
        """Begin on a new thread, and return when that runs; the first event follows."""
        run_on_new(self._main, name=self._name)

    @property
    def _name(self) -> str:
        return f"tau2 {self.loaded.name}/{self.task.id}"

    def act(self, action: AssistantMessage) -> None:
        """Give the agent's turn; one event follows."""
        self._actions.put(action)

    def abandon(self) -> None:
        """End the thread as soon as it next waits for an action; no event follows."""
        self._actions.put(None)

    def exchange(self, event: Event) -> AssistantMessage:
        """Hand over an event and wait for the agent's action. Called in the simulation's thread."""
        self.doing = "waiting for the agent"
        self._hand_over(event)
        action = self._actions.get()
        if action is None:
            raise Abandoned
        self.doing = "running tools"
        return action

    @property
    def trajectory(self) -> list[Any]:
        """Every message so far, of both sides, as tau2 holds them."""
        return self._orchestrator.trajectory if self._orchestrator else []

    @property
    def environment(self) -> Environment | None:
        """The live environment, once it was made."""
        return self._made

    @property
    def user_seconds(self) -> float:
        """Wall time until the user had answered, of all that it was asked; up to now where it has not."""
        asked_at = self._asked_at
        return self._user_seconds + (0.0 if asked_at is None else time.monotonic() - asked_at)

    def aside(self, call: Callable[[], T]) -> T:
        """The result of `call`, made in another thread for this simulation: its CPU time counts as the simulation's."""
        began = time.thread_time()
        try:
            return call()
        finally:
            self._aside_cpu_seconds += time.thread_time() - began

    def _main(self) -> None:
        self._cpu_before = time.thread_time()
        try:
            with _one_at_a_time():
                self._orchestrator = self._get_orchestrator()
            simulation = self._orchestrator.run()
            self.doing = "grading"
            assert self._made is not None
            with _one_at_a_time():
                self._hashes = self._made.get_db_hash(), self._made.get_user_db_hash()  # before the grader asks its questions
                event: Event = ConversationEnded(
                    self.last, simulation.termination_reason.value, self._grade(simulation), self._hashes
                )
        except Abandoned:
            return
        except EpisodeFailure as error:
            event = Broke(error)
        except Exception as error:  # noqa: BLE001 - a thread has no caller: whatever tau2 raised must reach the loop as a failure
            failure = EnvironmentFailure(f"tau2 raised while {self.doing}: {type(error).__name__}: {error}")
            failure.__cause__ = error
            event = Broke(failure)
        self.doing = "done"
        self._hand_over(event)

    def _hand_over(self, event: Event) -> None:
        self.cpu_seconds = time.thread_time() - self._cpu_before + self._aside_cpu_seconds
        self._deliver(event)

    def _grade(self, simulation: SimulationRun) -> dict[str, Any]:
        """tau2's verdict; for a conversation that it does not grade, its checks with a reward of 0.

        tau2 gives 0 and no checks unless somebody stopped. The checks of a conversation that was cut off are those that it
        would have had if the agent had stopped there.
        """
        assert self._made is not None
        graded = (
            simulation
            if simulation.termination_reason in GRADED
            else simulation.model_copy(update={"termination_reason": TerminationReason.AGENT_STOP})
        )
        info = grade(self.loaded, self.task, graded, self._made, self._hashes)
        if graded is not simulation:
            info["reward"] = 0.0
        return info

    # What AgentGymEnv asks of itself when it makes the orchestrator.

    def _get_task(self) -> Task:
        return self.task

    def _get_environment(self) -> Environment:
        if self._made is None:
            self._made = self.loaded.environment()
        return self._made

    def _get_orchestrator(self) -> Orchestrator:
        orchestrator = super()._get_orchestrator()
        orchestrator.get_trajectory = functools.partial(_in_order, orchestrator)
        return orchestrator

    def _get_agent(self) -> GymAgent:
        # Agent and user read the tools' schemas and never call them, so those of the domain serve every episode.
        return AgentBridge(self, list(self.loaded.agent_tools), self.loaded.policy)

    def _get_user(self) -> UserSimulator:
        self.user = self._make_user(self)
        self.user.generate_next_message = functools.partial(self._ask, self.user.generate_next_message)
        return self.user

    def _ask(self, answer: Callable[[Any, Any], T], message: Any, state: Any) -> T:
        """The user's answer, timed."""
        self.doing, self._asked_at = "waiting for the user simulator", time.monotonic()
        try:
            said = answer(message, state)
        finally:
            took, self._asked_at = time.monotonic() - self._asked_at, None
            self._user_seconds += took
        self.doing = "running tools"
        return said


def _in_order(orchestrator: Orchestrator) -> list[Any]:
    """tau2's `get_trajectory` (messages by time, numbered) with one shallow copy of each message in place of two deep ones."""
    trajectory: list[Any] = orchestrator.trajectory
    messages = sorted(trajectory, key=lambda message: message.timestamp)
    return [message.model_copy(update={"turn_idx": index}) for index, message in enumerate(messages)]


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    mine = _cpu.acquire(timeout=LONGEST_WAIT_SECONDS)
    try:
        yield
    finally:
        if mine:
            _cpu.release()
