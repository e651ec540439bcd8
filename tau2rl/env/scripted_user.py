"""User simulators that need no model: one follows the task's own reference path, the other says its lines."""

from __future__ import annotations

import itertools
import re
from typing import Any

from tau2rl.enums import TRANSFER_TOOL, UserSignal
from tau2rl.env.simulation import Simulation
from tau2rl.env.synth import SAY_YOUR_LINES
from tau2rl.types import Usage

from tau2.data_model.message import AssistantMessage, MultiToolMessage, ToolCall, ToolMessage, UserMessage
from tau2.user.user_simulator import DummyUser

APPS = ("messaging", "browser")  # of tau2's phone
# Sentences of a task's instructions that a scripted user keeps to; an LLM user can too.
ALL_AT_ONCE = "Say everything in your first message: why you call, and all of the known info."
ONE_LINE_A_MESSAGE = (
    "Open with the reason for the call alone. Then give the known info bit by bit: "
    "each time the agent speaks to you, its next line."
)
ONE_LINE_A_QUESTION = (
    "Open with the reason for the call alone. Give the known info only when the agent asks you something: one line a question, "
    "in their order."
)


class ScriptedUser(DummyUser):
    """A deterministic user that follows the task's own reference path.

    It opens with its reason and all that it knows, or, where the instructions say `ONE_LINE_A_MESSAGE` or `ONE_LINE_A_QUESTION`,
    with its reason alone; what it knows then comes a line at a time, and "No, that is all." to an agent that asks for more.
    When the agent's text names pending user-side reference actions
    (`toggle airplane mode` for `toggle_airplane_mode`) it performs them, in order, and reports the results. It also looks at what
    the text names (`check sim status`), which changes nothing. It ends the
    conversation when every reference action was performed and everything that had to be said was said, when it was
    transferred, or when `max_stalled_turns` agent messages in a row brought
    nothing new; to look again before anything was changed is nothing new.
    """

    def __init__(self, simulation: Simulation, *, max_stalled_turns: int) -> None:
        super().__init__()
        self.usage = Usage()
        self._simulation = simulation
        self._max_stalled_turns = max_stalled_turns
        self._stalled = 0
        self._user_actions_done = 0
        self._calls = 0
        criteria = simulation.task.evaluation_criteria
        gold = list((criteria.actions if criteria else None) or ())
        self._pace, self._lines = "", list[str]()  # from when it opens
        self._mine = [a for a in gold if a.requestor == "user"]
        self._looks = simulation.loaded.user_reads
        self._seen: set[str] = set()  # looked at since something was last changed
        self._heard = _Heard(
            actions=[a for a in gold if a.requestor == "assistant"],
            words=[info.lower() for info in (criteria.communicate_info if criteria else None) or ()],
        )
        self._progress = -len(self._heard.unsaid)  # counts up to the number of reference actions of both sides

    def generate_next_message(self, message: Any, state: Any) -> tuple[UserMessage, Any]:
        """The user's answer."""
        return self._answer(message), state

    def _answer(self, message: Any) -> UserMessage:
        if isinstance(message, ToolMessage | MultiToolMessage):
            results = message.tool_messages if isinstance(message, MultiToolMessage) else [message]
            return _user("Done. " + " ".join(result.content or "" for result in results))
        heard = self._heard
        heard.read(self._simulation.trajectory)
        if not heard.user:
            self._pace, self._lines = pace(self._simulation.task)
            return _user(opening_words(self._simulation.task, reason_alone=bool(self._lines)))
        text = message.content or ""
        progress = heard.done + self._user_actions_done - len(heard.unsaid)
        asked, looks = self._asked_for(text), self._looks_asked_for(text)
        if asked or looks:
            self._stalled = 0 if asked or looks - self._seen or progress > self._progress else self._stalled + 1
            self._seen = looks if asked or progress > self._progress else self._seen | looks
            self._progress = max(self._progress, progress)
            self._user_actions_done += len(asked)
            if self._stalled < self._max_stalled_turns:
                return self._calls_of(text, asked, looks)
        if not heard.undone and self._user_actions_done == len(self._mine) and not heard.unsaid:
            return _user(f"Thank you, that is all I needed. {UserSignal.STOP}")
        if heard.transferred:
            return _user(UserSignal.TRANSFER.value)
        if self._lines and (self._pace == ONE_LINE_A_MESSAGE or "?" in text):
            self._stalled = 0
            return _user(self._lines.pop(0))
        if not looks:
            self._stalled = 0 if progress > self._progress else self._stalled + 1
            self._progress = max(self._progress, progress)
        if self._stalled >= self._max_stalled_turns:
            return _user(f"This is not getting me anywhere. Goodbye. {UserSignal.STOP}")
        return _user("No, that is all." if self._pace and "else" in _words(text).split() else "Yes, please go ahead.")

    def _calls_of(self, text: str, asked: list[Any], looks: set[str]) -> UserMessage:
        """What the user does on their phone: reference actions in their order, looks before or after them as the text has it."""
        seen = [(name, self._about(name, text)) for name in sorted(looks, key=lambda name: _place(name, text))]
        first = min((_place(action.name, text) for action in asked), default=0)
        before = [look for look in seen if _place(look[0], text) < first]
        calls = [*before, *((action.name, action.arguments) for action in asked), *seen[len(before) :]]
        number, self._calls = self._calls, self._calls + len(calls)
        return _user(
            None,
            [
                ToolCall(id=f"user_{place}", name=name, arguments=arguments, requestor="user")
                for place, (name, arguments) in enumerate(calls, start=number)
            ],
        )

    def _asked_for(self, text: str) -> list[Any]:
        """The pending user-side actions that the text names, in reference order, up to the first that it does not name."""
        pending = self._mine[self._user_actions_done :]
        return list(itertools.takewhile(lambda action: _place(action.name, text) >= 0, pending))

    def _looks_asked_for(self, text: str) -> set[str]:
        """What the text names that the user can look at; of an app where it names one."""
        named = {name: needs for name, needs in self._looks.items() if _place(name, text) >= 0}
        apps = any(app in text.lower() for app in APPS)
        return {name for name, needs in named.items() if not needs or (needs == ("app_name",) and apps)}

    def _about(self, name: str, text: str) -> dict[str, str]:
        """The arguments of a look."""
        return {"app_name": next(app for app in APPS if app in text.lower())} if self._looks[name] else {}


class _Heard:
    """What a conversation has brought a scripted user; each of its messages is read once."""

    def __init__(self, *, actions: list[Any], words: list[str]) -> None:
        self.user = self.transferred = False  # whether the user has spoken, and whether the agent has handed over
        self.done, self.undone, self.unsaid = 0, actions, words
        self._read = 0

    def read(self, messages: list[Any]) -> None:
        """Read on; `messages` are all so far, in a list that only grows."""
        for message in messages[self._read :]:
            if isinstance(message, UserMessage):
                self.user = True
            elif isinstance(message, AssistantMessage):
                for call in message.tool_calls or ():
                    self._take(call)
                if message.content:
                    said = message.content.lower().replace(",", "")
                    self.unsaid = [words for words in self.unsaid if words not in said]
        self._read = len(messages)

    def _take(self, call: ToolCall) -> None:
        self.transferred |= call.name == TRANSFER_TOOL
        known, self.undone = len(self.undone), [gold for gold in self.undone if not gold.compare_with_tool_call(call)]
        self.done += known - len(self.undone)


class LineUser(DummyUser):
    """A user who says the lines of their task one at a time, each in answer to a message of the agent, then stops.

    Hears nothing: an agent that asks too little is told too late, and one that asks for something else gets the next line.
    """

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self.usage = Usage()
        instructions = simulation.task.user_scenario.instructions
        self._lines = iter([instructions.reason_for_call, *(instructions.known_info or "").splitlines(), UserSignal.STOP.value])  # pyright: ignore[reportAttributeAccessIssue]

    def generate_next_message(self, message: Any, state: Any) -> tuple[UserMessage, Any]:
        """The next line."""
        return _user(next(self._lines)), state


def has_lines(task: Any) -> bool:
    """Whether the task asks for a user who says its lines word for word."""
    return getattr(task.user_scenario.instructions, "task_instructions", None) == SAY_YOUR_LINES


def pace(task: Any) -> tuple[str, list[str]]:
    """(which of the sentences about it a task's instructions have, or ""; the lines that come one at a time)."""
    instructions = task.user_scenario.instructions
    said: str = getattr(instructions, "task_instructions", "")
    known: str = getattr(instructions, "known_info", None) or ""
    found = next((sentence for sentence in (ALL_AT_ONCE, ONE_LINE_A_MESSAGE, ONE_LINE_A_QUESTION) if sentence in said), "")
    return found, known.splitlines() if found not in ("", ALL_AT_ONCE) else []


def opening_words(task: Any, *, reason_alone: bool = False) -> str:
    """What a scripted user says first: why it calls, and what it knows unless `reason_alone`.

    Reads tau2's structured instructions, or the whole text where a task has only that.
    """
    instructions = task.user_scenario.instructions
    if isinstance(instructions, str):
        return instructions
    parts = (instructions.reason_for_call, None if reason_alone else instructions.known_info)
    return "\n".join(part.strip() for part in parts if part and part.strip())


def _user(text: str | None, calls: list[ToolCall] | None = None) -> UserMessage:
    return UserMessage(role="user", content=text, tool_calls=calls or None, cost=0.0)


def _place(name: str, text: str) -> int:
    """Where a text names a tool; -1 where it does not.

    >>> _place("toggle_airplane_mode", "Please toggle airplane mode."), _place("reboot_device", "Reboot it!")
    (7, -1)
    """
    return f" {_words(text)} ".find(f" {_words(name)} ")


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
