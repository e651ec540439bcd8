"""The agent's seat in a tau2 simulation: a bridge between tau2's thread and whoever plays the agent.

tau2's orchestrator asks its agent for a message and waits. This agent hands over what is new and waits for the action.

The threads are daemons that run one conversation after another: a new thread costs 0.4 ms of an episode's 9. One that hangs is
left behind, and nobody waits for it, not even the end of the process: that is why this is no `ThreadPoolExecutor`, whose
threads are joined at exit.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tau2rl.env.domain import Hashes
from tau2rl.errors import EpisodeFailure

from tau2.data_model.message import AssistantMessage, MultiToolMessage, ToolCall, ToolMessage, UserMessage
from tau2.environment.tool import Tool, as_tool
from tau2.gym.gym_agent import GymAgent, done


@dataclass(frozen=True, slots=True)
class Observed:
    """The agent's turn has come: what is new for it, and all it has seen when it is its first turn."""

    new: list[Any]  # tau2 messages, oldest first


@dataclass(frozen=True, slots=True)
class ConversationEnded:
    """The simulation is over and graded."""

    new: list[Any]  # what was still addressed to the agent
    termination: str
    reward_info: dict[str, Any]  # tau2's RewardInfo as JSON values
    db_hashes: Hashes


@dataclass(frozen=True, slots=True)
class Broke:
    """The thread raised."""

    error: EpisodeFailure


Event = Observed | ConversationEnded | Broke


class Abandoned(BaseException):
    """Raised inside the simulation's thread to end it; not an Exception, so that no handler of tau2 keeps it."""


class Exchange(Protocol):
    """Who stands between the agent and whoever plays it: a `Simulation`."""

    last: list[Any]  # what was still addressed to the agent when the conversation ended

    def exchange(self, event: Event) -> AssistantMessage:
        """Hand over an event and wait for the agent's action. Raises Abandoned when there will be none."""
        ...


class AgentBridge(GymAgent):
    """The gym's agent (its `done` tool, its stop token, its history) with a queue in place of events and polling."""

    def __init__(self, simulation: Exchange, tools: list[Any], domain_policy: str) -> None:
        super().__init__(tools=tools, domain_policy=domain_policy)
        self._simulation = simulation
        self._seen = 0
        self._done = False

    def add_stop_tool(self) -> None:
        """The gym's `done`, whose schema is made once and not for every episode."""
        self.tools.append(_done_tool())

    def generate_next_message(self, message: Any, state: Any) -> Any:
        """tau2's turn of the agent: hand over what is new, and come back with the action."""
        if isinstance(message, MultiToolMessage):
            state.messages.extend(message.tool_messages)
        elif message is not None:
            state.messages.append(message)
        action = self._simulation.exchange(Observed(state.messages[self._seen :]))
        self._done = any(call.name == self.STOP_FUNCTION_NAME for call in action.tool_calls or ())
        action = self._check_if_stop_toolcall(action)
        state.messages.append(action)
        self._seen = len(state.messages)
        return action, state

    def is_stop(self, message: Any) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] - tau2 asks the instance
        """Only `done` ends a conversation: the gym also takes the stop token inside a text, which tau2's own agent does not."""
        return self._done

    def stop(self, message: Any = None, state: Any = None) -> None:
        """Keep the last message to the agent; nobody waits for an observation any more."""
        if isinstance(message, MultiToolMessage):
            self._simulation.last = list(message.tool_messages)
        elif isinstance(message, UserMessage | ToolMessage):
            self._simulation.last = [message]


@functools.cache
def _done_tool() -> Tool:
    return as_tool(done)


def assistant_message(text: str, calls: list[tuple[str, str, dict[str, Any]]]) -> AssistantMessage:
    """tau2's message for one agent turn; `calls` are (id, name, arguments). Text beside calls is kept, as tau2 allows."""
    return AssistantMessage(
        role="assistant",
        content=text or None,
        tool_calls=[ToolCall(id=i, name=n, arguments=a, requestor="assistant") for i, n, a in calls] or None,
    )


IDLE_SECONDS = 60.0  # a thread without a job ends after so long
IDLE = "idle"

Job = Callable[[], object]


class _ReusableThread:
    """One thread and the jobs that it is given, one at a time."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Job, str]] = queue.SimpleQueue()

    def give(self, job: Job, name: str) -> None:
        self._jobs.put((job, name))

    def run(self) -> None:
        thread = threading.current_thread()
        while True:
            try:
                job, thread.name = self._jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                try:
                    _idle.remove(self)
                except ValueError:  # taken in this very moment: a job is on its way
                    continue
                return
            job()
            del job  # with all that it holds, a whole conversation, while the thread waits for the next one
            thread.name = IDLE
            _idle.append(self)


_idle: list[_ReusableThread] = []  # its append, pop and remove are atomic


def run_on_idle(job: Job, *, name: str) -> bool:
    """Run the job on a thread that has nothing to do, at once; False when there is none. What it raises ends its thread."""
    try:
        thread = _idle.pop()
    except IndexError:
        return False
    thread.give(job, name)
    return True


def run_on_new(job: Job, *, name: str) -> None:
    """Run the job on a new thread. Returns when that runs, which can take milliseconds in a busy process."""
    thread = _ReusableThread()
    thread.give(job, name)
    threading.Thread(target=thread.run, name=name, daemon=True).start()
