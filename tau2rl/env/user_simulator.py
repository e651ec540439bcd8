"""What an evaluation stood on: the tau2 that ran, the hashes of its data, and who played the user."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import PrivateAttr

from tau2rl.config import UserConfig
from tau2rl.env import threads
from tau2rl.env.scripted_user import LineUser, ScriptedUser, has_lines
from tau2rl.env.simulation import Session
from tau2rl.errors import UserError, UserSimulatorFailure
from tau2rl.hashing import derive_seed
from tau2rl.settings import api_key, litellm_options
from tau2rl.types import Usage

from tau2.data_model.message import UserMessage  # isort: skip
from collections.abc import Iterable

from tau2.user.base import UserState
from tau2.user.user_simulator import UserSimulator

from tau2rl.env.domain import domain
from tau2rl.env.package import installed

T = TypeVar("T")
CALL = "user simulator call"  # the name of its thread


def make_user(config: UserConfig, *, seed: int) -> Callable[[Session], UserSimulator]:
    """The user of one episode, as `Tau2Env` takes it. `seed` reaches the user model's sampling."""

    def make(session: Session) -> UserSimulator:
        match config.kind:
            case "scripted":
                return LineUser(session) if has_lines(session.task) else ScriptedUser(session, patience=config.max_stalled_turns)
            case "llm":
                return LlmUser(session, config, seed=derive_seed(seed, "user"))

    return make


def check_key(config: UserConfig) -> None:
    """Raises UserError when the user model's key is missing, as far as litellm can tell without a call."""
    import litellm  # takes seconds, which the first call would have less of before its deadline

    key = api_key(config.model, config.api_base, config.api_key_env)
    if key or config.api_base:
        return
    missing = litellm.validate_environment(model=config.model).get("missing_keys") or []
    if missing:
        raise UserError(
            f"no key for the user model `{config.model}`: {' or '.join(f'`{name}`' for name in missing)} is not set",
            hint="export it, name it with `user.api_key_env`, or use `--user-model scripted`",
        )


def user_identity(config: UserConfig) -> dict[str, Any]:
    """What decides how the user talks: model, temperature, and a hash of tau2's simulator prompts."""
    if config.kind == "scripted":
        return {"kind": "scripted", "max_stalled_turns": config.max_stalled_turns}
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

    def get_init_state(self, message_history: list[Any] | None = None) -> UserState:
        """tau2's, which flips a message once and not at every turn again."""
        state = super().get_init_state(message_history)
        return _FlippedOnce(system_messages=state.system_messages, messages=state.messages)

    def generate_next_message(self, message: Any, state: Any) -> tuple[UserMessage, Any]:
        """The user's answer, checked. Raises UserSimulatorFailure."""
        problem = ""
        for attempt in range(1 + self._config.retries):
            if attempt:
                self.llm_args["seed"] += 1  # the same seed would get the same answer
            # Each call has its own history: one that is left behind at its deadline may still write into it.
            trial = state.model_copy(update={"messages": list(state.messages)})
            try:
                call = functools.partial(super().generate_next_message, message, trial)
                answer, trial = _within(self._config.timeout_seconds, functools.partial(self._session.aside, call))
            except Exception as error:  # noqa: BLE001 - litellm raises whatever a server or a broken answer brings; none of it is the agent's doing
                problem = f"{type(error).__name__}: {_first_line(error)}"
                continue
            self.usage = self.usage + _usage(answer)
            problem = self._fault_of(answer)
            if not problem:
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


class _FlippedOnce(UserState):
    """A user's history of a conversation that only grows, with what tau2 made of it for the user model so far."""

    _flipped: list[Any] = PrivateAttr(default_factory=list)

    def flip_roles(self) -> list[Any]:
        """tau2's: the user's messages as the model's own, and the agent's as those of its user."""
        new = UserState.model_construct(system_messages=[], messages=self.messages[len(self._flipped) :])
        # Another list, not a longer one: a call that was left behind at its deadline may be at work on that.
        self._flipped = [*self._flipped, *new.flip_roles()]
        return list(self._flipped)


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
    done = threading.Event()

    def run() -> None:
        try:
            result = call()
            outcome.append(lambda: result)
        except Exception as error:  # noqa: BLE001 - carried over to the caller below
            outcome.append(lambda error=error: _raise(error))
        finally:
            done.set()

    if not threads.hand_over(run, name=CALL):
        threads.start(run, name=CALL)
    if not done.wait(seconds):
        raise TimeoutError(f"no answer within {seconds:g} s")
    return outcome[0]()


def _raise(error: Exception) -> Any:
    raise error


def bench_identity(domains: Iterable[str], user: UserConfig) -> dict[str, Any]:
    """The bench's part of `environment.json`, JSON-ready."""
    package = installed()
    return {
        "tau2": {"distribution": package.distribution, "version": package.version},
        "data": {name: domain(name).hashes() for name in dict.fromkeys(domains)},
        "user": user_identity(user),
        "judge": None,  # no task of the pinned data is graded by a model
    }
