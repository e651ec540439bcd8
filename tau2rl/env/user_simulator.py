"""Who plays the user of an episode; and the LLM user simulator: tau2's, with a deadline a call, retries and checked answers."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

from tau2rl.config import UserConfig
from tau2rl.env.chat_client import ChatError, chat_client, is_direct
from tau2rl.env.scripted_user import LineUser, ScriptedUser, has_lines
from tau2rl.env.simulation import Simulation
from tau2rl.env.user_answer import UnusableAnswer, read_answer, usage_of
from tau2rl.errors import UserError, UserSimulatorFailure
from tau2rl.hashing import derive_seed
from tau2rl.settings import api_key
from tau2rl.types import Usage

from tau2.data_model.message import AssistantMessage, MultiToolMessage, UserMessage
from tau2.user.user_simulator import UserSimulator

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 10.0


def make_user(config: UserConfig, *, seed: int) -> Callable[[Simulation], UserSimulator]:
    """The user of one episode, as `Tau2Env` takes it. `seed` reaches the user model's sampling."""

    def make(simulation: Simulation) -> UserSimulator:
        match config.kind:
            case "scripted" if has_lines(simulation.task):
                return LineUser(simulation)
            case "scripted":
                return ScriptedUser(simulation, max_stalled_turns=config.max_stalled_turns)
            case "llm":
                return LlmUser(simulation, config, seed=derive_seed(seed, "user"))

    return make


def check_key(config: UserConfig) -> None:
    """Raises UserError when the user model's key is missing, as far as it can be told without a call."""
    key = api_key(config.model, config.api_base, config.api_key_env)
    if is_direct(config):
        return
    import litellm  # takes seconds, which the first call would have less of before its deadline

    if key or config.api_base:
        return
    missing = litellm.validate_environment(model=config.model).get("missing_keys") or []
    if missing:
        raise UserError(
            f"no key for the user model `{config.model}`: {' or '.join(f'`{name}`' for name in missing)} is not set",
            hint="export it, name it with `user.api_key_env`, or use `--user-model scripted`",
        )


class LlmUser(UserSimulator):
    """tau2's user simulator: its prompt, its tools, its roles, and the same requests on the wire.

    An answer that no user can give (`user_answer.py`) is asked for again with another seed, as is one that does not come; when
    that goes on, the episode is FAILED with fault `user`.
    """

    def __init__(self, simulation: Simulation, config: UserConfig, *, seed: int) -> None:
        loaded = simulation.loaded
        super().__init__(tools=loaded.user_tools, instructions=simulation.task.user_scenario, llm=config.model)  # pyright: ignore[reportArgumentType]
        self.usage = Usage()
        self._config = config
        self._client = chat_client(config, aside=simulation.aside)
        self._seed = seed
        self._tools = list(loaded.user_tool_schemas)
        self._tool_names = frozenset(tool["function"]["name"] for tool in self._tools)
        self._sent: list[dict[str, Any]] = []  # the messages of a state as the model sees them, each made once
        self._heard = ""  # what the agent said last

    def generate_next_message(self, message: Any, state: Any) -> tuple[UserMessage, Any]:
        """The user's answer, checked. Raises UserSimulatorFailure."""
        state.messages.extend(message.tool_messages if isinstance(message, MultiToolMessage) else [message])
        if isinstance(message, AssistantMessage):
            self._heard = message.content or ""
        answer = self._ask(self._request(state))
        state.messages.append(answer)
        return answer, state

    def _request(self, state: Any) -> dict[str, Any]:
        self._sent += map(as_sent, state.messages[len(self._sent) :])
        system = [{"role": "system", "content": message.content} for message in state.system_messages]
        tools = {"tools": self._tools, "tool_choice": "auto"} if self._tools else {}
        return {"messages": [*system, *self._sent], "temperature": self._config.temperature, **tools}

    def _ask(self, request: dict[str, Any]) -> UserMessage:
        problem = ""
        for tries in range(1 + self._config.retries):
            try:
                answer = self._client.complete({**request, "seed": self._seed}, seconds=self._config.timeout_seconds)
                self.usage += usage_of(answer.body) + Usage(cost_usd=answer.cost_usd)
                return read_answer(answer.body, tools=self._tool_names, heard=self._heard, cost_usd=answer.cost_usd)
            except UnusableAnswer as error:
                problem = str(error)
            except ChatError as error:
                problem = str(error)
                if not error.retry:
                    raise UserSimulatorFailure(f"the user model `{self._config.model}` refused the request: {problem}") from None
                if tries < self._config.retries:
                    time.sleep(self._pause_seconds(tries, error.wait_seconds))
            self._seed += 1  # the same seed would get the same answer
        tried = 1 + self._config.retries
        raise UserSimulatorFailure(f"the user model `{self._config.model}` gave no usable answer in {tried} tries: {problem}")

    def _pause_seconds(self, tries: int, wanted: float | None) -> float:
        """What the server asked for, no longer than a call may take; else a pause that doubles, half of it at random."""
        if wanted is not None:
            return min(wanted, self._config.timeout_seconds)
        return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**tries) * random.uniform(0.5, 1.0)


def as_sent(message: Any) -> dict[str, Any]:
    """A message of the conversation as the user model sees it: the user is the assistant, the agent is the user.

    What tau2's `flip_roles`, `to_litellm_messages` and litellm make of it together.
    """
    if isinstance(message, AssistantMessage):
        return {"role": "user", "content": message.content}
    if isinstance(message, UserMessage):
        calls = [
            {"id": c.id, "name": c.name, "function": {"name": c.name, "arguments": json.dumps(c.arguments)}, "type": "function"}
            for c in message.tool_calls or ()
        ]
        sent = {"role": "assistant", "content": message.content, "tool_calls": calls or None}
    else:
        sent = {"role": "tool", "content": message.content, "tool_call_id": message.id}
    return {name: value for name, value in sent.items() if value is not None}
