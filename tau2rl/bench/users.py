"""The simulated customer: tau2's own LLM simulator with deadlines and checks, and scripted ones that need no model."""

from __future__ import annotations

import functools
import hashlib
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from tau2rl.bench.session import Session
from tau2rl.bench.synth import SAY_YOUR_LINES
from tau2rl.config import UserConfig
from tau2rl.errors import UserError, UserSimulatorFailure
from tau2rl.settings import api_key, litellm_options
from tau2rl.types import Usage, derive_seed

from tau2.data_model.message import AssistantMessage, MultiToolMessage, ToolCall, ToolMessage, UserMessage  # isort: skip
from tau2.user.base import STOP
from tau2.user.user_simulator import DummyUser, UserSimulator

T = TypeVar("T")
TRANSFER_TOOL = "transfer_to_human_agents"


def make_user(config: UserConfig, *, seed: int) -> Callable[[Session], UserSimulator]:
    """The user of one episode, as `Tau2Env` takes it. `seed` reaches the user model's sampling."""

    def make(session: Session) -> UserSimulator:
        match config.kind:
            case "scripted":
                return LineUser(session) if has_lines(session.task) else ScriptedUser(session, patience=config.patience)
            case "llm":
                return LlmUser(session, config, seed=derive_seed(seed, "user"))

    return make


def check_key(config: UserConfig) -> None:
    """Raises UserError when the user model's key is missing, as far as litellm can tell without a call."""
    key = api_key(config.model, config.api_base, config.api_key_env)
    if key or config.api_base:
        return
    import litellm

    missing = litellm.validate_environment(model=config.model).get("missing_keys") or []
    if missing:
        raise UserError(
            f"no key for the user model `{config.model}`: {' or '.join(f'`{name}`' for name in missing)} is not set",
            hint="export it, name it with `user.api_key_env`, or use `--user-model scripted`",
        )


def user_identity(config: UserConfig) -> dict[str, Any]:
    """What decides how the user talks: model, temperature, and a hash of tau2's simulator prompts."""
    if config.kind == "scripted":
        return {"kind": "scripted", "patience": config.patience}
    from tau2.user.user_simulator import SYSTEM_PROMPT, get_global_user_sim_guidelines

    prompts = SYSTEM_PROMPT + get_global_user_sim_guidelines(use_tools=False) + get_global_user_sim_guidelines(use_tools=True)
    return {
        "kind": "llm",
        "model": config.model,
        "temperature": config.temperature,
        "prompt": hashlib.sha256(prompts.encode()).hexdigest()[:16],
    }


class LlmUser(UserSimulator):
    """tau2's user simulator (its prompt, its tools, its role flipping) with a deadline a call, retries, and checked answers.

    An answer that no user can give (nothing at all, a tool that the user does not have, the agent's tool-call markup) is
    asked for again; when it keeps coming the episode is FAILED with fault `user`.
    """

    def __init__(self, session: Session, config: UserConfig, *, seed: int) -> None:
        tools = session.loaded.user_tools
        arguments: dict[str, Any] = {
            "temperature": config.temperature,
            "timeout": config.timeout_seconds,
            "num_retries": 0,  # retries are ours, so that each has its deadline and its own seed
            "seed": seed,
            **litellm_options(),
        }
        if config.api_base:
            arguments["api_base"] = config.api_base
        if key := api_key(config.model, config.api_base, config.api_key_env):
            arguments["api_key"] = key
        super().__init__(tools=tools, instructions=session.task.user_scenario, llm=config.model, llm_args=arguments)  # pyright: ignore[reportArgumentType]
        self.usage = Usage()
        self._session = session
        self._config = config
        self._tool_names = {tool.name for tool in tools or ()}

    def generate_next_message(self, message: Any, state: Any) -> tuple[UserMessage, Any]:
        """The user's answer, checked. Raises UserSimulatorFailure."""
        self._session.doing = "waiting for the user simulator"
        problem = ""
        for attempt in range(1 + self._config.retries):
            if attempt:
                self.llm_args["seed"] += 1  # the same seed would get the same answer
            # Each call has its own history: one that is left behind at its deadline may still write into it.
            trial = state.model_copy(update={"messages": list(state.messages)})
            try:
                answer, trial = _within(
                    self._config.timeout_seconds, functools.partial(super().generate_next_message, message, trial)
                )
            except Exception as error:  # noqa: BLE001 - litellm raises whatever a server or a broken answer brings; none of it is the agent's doing
                problem = f"{type(error).__name__}: {_first_line(error)}"
                continue
            self.usage = self.usage + _usage(answer)
            problem = self._fault_of(answer)
            if not problem:
                self._session.doing = "running tools"
                return answer, trial
        raise UserSimulatorFailure(
            f"the user simulator `{self._config.model}` failed {1 + self._config.retries} times: {problem}"
        )

    def _fault_of(self, answer: UserMessage) -> str:
        for call in answer.tool_calls or ():
            if call.name not in self._tool_names:
                return f"it called `{call.name}`, a tool that this user does not have"
        if not answer.tool_calls and not answer.has_text_content():
            return "its answer was empty"
        if answer.content and "<tool_call>" in answer.content:
            return "it wrote a tool call as text"
        return ""


class ScriptedUser(DummyUser):
    """A deterministic customer that follows the task's own reference path.

    It opens with its reason and all that it knows. When the agent's text names pending user-side reference actions
    (`toggle airplane mode` for `toggle_airplane_mode`) it performs them, in order, and reports the results. It ends the
    conversation when every reference action was performed and everything that had to be said was said, when it was
    transferred, or when `patience` agent messages in a row brought nothing new.
    """

    def __init__(self, session: Session, *, patience: int) -> None:
        super().__init__()
        self.usage = Usage()
        self._session = session
        self._patience = patience
        self._waited = 0
        self._user_actions_done = 0
        criteria = session.task.evaluation_criteria
        gold = list((criteria.actions if criteria else None) or ())
        self._mine = [a for a in gold if a.requestor == "user"]
        self._agents = [a for a in gold if a.requestor == "assistant"]
        self._to_hear = [info.lower() for info in (criteria.communicate_info if criteria else None) or ()]
        self._progress = -len(self._to_hear)  # counts up to the number of reference actions of both sides

    def generate_next_message(self, message: Any, state: Any) -> tuple[UserMessage, Any]:
        """The user's answer."""
        self._session.doing = "waiting for the user simulator"
        answer = self._answer(message)
        self._session.doing = "running tools"
        return answer, state

    def _answer(self, message: Any) -> UserMessage:
        if isinstance(message, ToolMessage | MultiToolMessage):
            results = message.tool_messages if isinstance(message, MultiToolMessage) else [message]
            return _user("Done. " + " ".join(result.content or "" for result in results))
        if not any(isinstance(m, UserMessage) for m in self._session.trajectory):
            return _user(opening_words(self._session.task))
        calls = [c for m in self._session.trajectory if isinstance(m, AssistantMessage) for c in m.tool_calls or ()]
        text = message.content or ""
        if asked := self._asked_for(text):
            self._user_actions_done += len(asked)
            self._waited = 0
            return _user(None, [ToolCall(id=f"user_{i}", name=a.name, arguments=a.arguments, requestor="user") for i, a in asked])
        met = sum(any(gold.compare_with_tool_call(call) for call in calls) for gold in self._agents)
        unheard = self._unheard()
        if met == len(self._agents) and self._user_actions_done == len(self._mine) and not unheard:
            return _user("Thank you, that is all I needed. ###STOP###")
        if any(call.name == TRANSFER_TOOL for call in calls):
            return _user("###TRANSFER###")
        progress = met + self._user_actions_done - unheard
        self._waited = 0 if progress > self._progress else self._waited + 1
        self._progress = max(self._progress, progress)
        if self._waited >= self._patience:
            return _user("This is not getting me anywhere. Goodbye. ###STOP###")
        return _user("Yes, please go ahead.")

    def _asked_for(self, text: str) -> list[tuple[int, Any]]:
        """The pending user-side actions that the text names, in reference order, up to the first that it does not name."""
        words = f" {_words(text)} "
        asked: list[tuple[int, Any]] = []
        for index in range(self._user_actions_done, len(self._mine)):
            if f" {_words(self._mine[index].name)} " not in words:
                break
            asked.append((index, self._mine[index]))
        return asked

    def _unheard(self) -> int:
        said = [
            m.content.lower().replace(",", "") for m in self._session.trajectory if isinstance(m, AssistantMessage) and m.content
        ]
        return sum(not any(info in text for text in said) for info in self._to_hear)


class LineUser(DummyUser):
    """A customer who says the lines of their task one at a time, each in answer to a message of the agent, then stops.

    Hears nothing: an agent that asks too little is told too late, and one that asks for something else gets the next line.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.usage = Usage()
        instructions = session.task.user_scenario.instructions
        self._lines = iter([instructions.reason_for_call, *(instructions.known_info or "").splitlines(), STOP])  # pyright: ignore[reportAttributeAccessIssue]

    def generate_next_message(self, message: Any, state: Any) -> tuple[UserMessage, Any]:
        """The next line."""
        return _user(next(self._lines)), state


def has_lines(task: Any) -> bool:
    """Whether the task asks for a user who says its lines word for word."""
    return getattr(task.user_scenario.instructions, "task_instructions", None) == SAY_YOUR_LINES


def opening_words(task: Any) -> str:
    """What a scripted user says first: why it calls, and what it knows.

    Reads tau2's structured instructions, or the whole text where a task has only that.
    """
    instructions = task.user_scenario.instructions
    if isinstance(instructions, str):
        return instructions
    return "\n".join(part.strip() for part in (instructions.reason_for_call, instructions.known_info) if part and part.strip())


def _user(text: str | None, calls: list[ToolCall] | None = None) -> UserMessage:
    return UserMessage(role="user", content=text, tool_calls=calls or None, cost=0.0)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _first_line(error: Exception) -> str:
    text = str(error).partition("Traceback")[0].strip()  # litellm puts whole tracebacks into its messages
    return (text.splitlines() or [""])[0][:300]


def _usage(answer: UserMessage) -> Usage:
    usage = answer.usage or {}
    return Usage(
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        cost_usd=answer.cost or 0.0,
    )


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`, or TimeoutError after so many seconds.

    A client's own timeout counts from byte to byte, so a server that drips holds it for ever; this one counts from the
    start. The thread that overran is left behind as a daemon.
    """
    outcome: list[Callable[[], T]] = []

    def run() -> None:
        try:
            result = call()
            outcome.append(lambda: result)
        except Exception as error:  # noqa: BLE001 - carried over to the caller below
            outcome.append(lambda error=error: _raise(error))

    thread = threading.Thread(target=run, name="user simulator call", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return outcome[0]()


def _raise(error: Exception) -> Any:
    raise error
