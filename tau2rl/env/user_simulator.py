"""Who plays the user of an episode; and the LLM user simulator: tau2's, with a deadline a call, retries and checked answers.

An answer is read as a user's message, or there is a reason why no user can have said it: a broken one must never reach the
conversation, because the agent would be graded for what our user model did.
"""

from __future__ import annotations

import json
import re
import time
import unicodedata
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar, cast

from tau2rl.chat.content import NotText, read_arguments, read_content
from tau2rl.config import UserConfig
from tau2rl.enums import Ending, ending_of
from tau2rl.env import quiet_tau2  # noqa: F401 - before tau2
from tau2rl.env.chat_client import ChatAnswer, ChatError, RateLimited, chat_client, is_direct, one_line, throttle_of
from tau2rl.env.domain import domain
from tau2rl.env.scripted_user import LineUser, ScriptedUser, has_lines
from tau2rl.env.simulation import Simulation
from tau2rl.errors import UserError, UserSimulatorFailure
from tau2rl.hashing import derive_seed
from tau2rl.rate_limit import pause_seconds
from tau2rl.settings import api_key
from tau2rl.types import Usage

from tau2.data_model.message import AssistantMessage, MultiToolMessage, ToolCall, UserMessage
from tau2.user.user_simulator import UserSimulator

T = TypeVar("T")
SAMPLING_FIELDS = ("temperature", "seed")
FIRST_QUESTION = (
    {"role": "system", "content": "You are a customer who calls a help desk."},
    {"role": "user", "content": "Hi! How can I help you today?"},
)


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


def check_answers(config: UserConfig, domains: Sequence[str]) -> None:
    """Ask the user model one short question, with the tools that users of these domains have.

    Raises UserError when no answer comes: a wrong key or name, or a field that it refuses, would otherwise fail every episode.
    What it says does not matter here.
    """
    tools = next((list(schemas) for name in domains if (schemas := domain(name).user_tool_schemas)), [])
    model = UserModel(config, tools, seed=0, aside=lambda call: call())
    try:
        model.ask(list(FIRST_QUESTION), read=lambda answer: answer)
    except UserSimulatorFailure as failure:
        refused = [name for name in SAMPLING_FIELDS if name in str(failure)]
        hint = "look at `user.model`, `user.api_base` and `user.api_key_env`"
        if refused:
            hint = f"leave out what the server does not take: `user.omit: [{', '.join(refused)}]`"
        raise UserError(str(failure), hint=hint) from None


class UserModel:
    """The model behind a user: one question, asked until there is an answer that can be used.

    Each try has its deadline, and its own seed. A server that limits its rate uses up no tries: it is asked until as much time is
    over as all of them may take.
    """

    def __init__(
        self,
        config: UserConfig,
        tools: Sequence[Any],
        *,
        seed: int,
        aside: Callable[[Callable[[], Any]], Any],
        who: str = "user model",
    ) -> None:
        """`tools`: their schemas; `aside`: see `chat_client`; `who`: in messages. Raises UserError for a key that is not set."""
        self._who = f"the {who} `{config.model}`"
        self._config = config
        self._client = chat_client(config, aside=aside)
        self._throttle = throttle_of(config.model, config.api_base)
        self._fields: dict[str, Any] = {"tools": list(tools), "tool_choice": "auto"} if tools else {}
        self._seed = seed

    def ask(self, messages: list[dict[str, Any]], *, read: Callable[[ChatAnswer], T]) -> T:
        """What `read` makes of the first answer in which it finds nothing wrong (UnusableAnswer). Raises UserSimulatorFailure."""
        config, problem, tries = self._config, "", 0
        seconds = config.timeout_seconds * (1 + config.retries)
        sent_at = time.monotonic()
        deadline = sent_at + seconds
        while tries <= config.retries:
            try:
                self._throttle.wait(deadline)
                sent_at = time.monotonic()
                answer = self._client.complete(self._request(messages), seconds=config.timeout_seconds)
                self._throttle.answered()
                return read(answer)
            except TimeoutError:
                why = f": {problem}" if problem else ", because it limits its rate"
                raise UserSimulatorFailure(f"{self._who} took no call within {seconds:g} s{why}") from None
            except UnusableAnswer as error:
                problem = str(error)
            except RateLimited as error:
                problem = str(error)
                self._throttle.refused(sent_at, error.retry_after, longest=seconds)
                continue
            except ChatError as error:
                problem = str(error)
                if not error.retry:
                    raise UserSimulatorFailure(f"{self._who} refused the request: {problem}") from None
                if tries < config.retries:
                    time.sleep(pause_seconds(tries))
            self._seed += 1  # the same seed would get the same answer
            tries += 1
        raise UserSimulatorFailure(f"{self._who} gave no usable answer in {tries} tries: {problem}")

    def _request(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        sampling = {"temperature": self._config.temperature, "seed": self._seed}
        kept = {name: value for name, value in sampling.items() if name not in self._config.omit}
        return {"messages": messages, **self._fields, **kept}


class LlmUser(UserSimulator):
    """tau2's user simulator: its prompt, its tools, its roles, and the same requests on the wire.

    An answer that no user can give is asked for again with another seed, as is one that does not come; when
    that goes on, the episode is FAILED with fault `user`.
    """

    def __init__(self, simulation: Simulation, config: UserConfig, *, seed: int) -> None:
        loaded = simulation.loaded
        super().__init__(tools=loaded.user_tools, instructions=simulation.task.user_scenario, llm=config.model)  # pyright: ignore[reportArgumentType]
        self.usage = Usage()
        self._model = UserModel(config, loaded.user_tool_schemas, seed=seed, aside=simulation.aside)
        self._tool_names = frozenset(tool["function"]["name"] for tool in loaded.user_tool_schemas)
        self._sent: list[dict[str, Any]] = []  # the messages of a state as the model sees them, each made once
        self._heard = ""  # what the agent said last

    def generate_next_message(self, message: Any, state: Any) -> tuple[UserMessage, Any]:
        """The user's answer, checked. Raises UserSimulatorFailure."""
        state.messages.extend(message.tool_messages if isinstance(message, MultiToolMessage) else [message])
        if isinstance(message, AssistantMessage):
            self._heard = message.content or ""
        self._sent += map(as_sent, state.messages[len(self._sent) :])
        system = [{"role": "system", "content": message.content} for message in state.system_messages]
        answer = self._model.ask([*system, *self._sent], read=self._read)
        state.messages.append(answer)
        return answer, state

    def _read(self, answer: ChatAnswer) -> UserMessage:
        self.usage += user_usage(answer.body) + Usage(cost_usd=answer.cost_usd)
        return read_user_answer(answer.body, tools=self._tool_names, heard=self._heard, cost_usd=answer.cost_usd)


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


MAX_CHARACTERS = 20_000  # of what a user says: tau2's longest scenario has 4,000
# What marks thoughts, tool calls, turns and ends in the chat formats of open models, and no person types: its server should have
# taken it out of the text. `<|im_end|>`, `<|tool_call>`, `<tool_call|>`; DeepSeek's bars; `<think>`, `<seed:tool_call>`,
# `<function=f>`; Mistral's `[TOOL_CALLS]`; `<s>`, `<<SYS>>`; Kimi's `◁think▷`.
MARKUP = re.compile(
    r"<\|[^\s<>]{1,60}>|<[^\s<>]{1,60}\|>|<｜|｜>|◁/?\w{1,30}▷|<<SYS>>|</?(s|bos|eos|pad|unk|start_of_turn|end_of_\w+)>"
    r"|</?(\w+:)?(\w*think(ing)?|thoughts?|reasoning|reflection|scratchpad|analysis|final|answer|invoke|parameter|function|function_calls?"
    r"|arg_key|arg_value|tools?|\w*tool_?(calls?|responses?|results?|outputs?))(\s[^<>]{0,200}|=[^<>]{0,200})?>"
    r"|\[/?(INST|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|AVAILABLE_TOOLS|SYSTEM_PROMPT|THINK|ARGS|CALL_ID)\]",
    re.IGNORECASE,
)
ECHO_CHARACTERS = 40  # both sides may say "Goodbye."
SPEAKS_AS_AGENT = re.compile(r"\bhow (can|may) i (help|assist) you\b", re.IGNORECASE)


class UnusableAnswer(Exception):
    """No user can have said this; the message says why."""


def read_user_answer(body: dict[str, Any], *, tools: Collection[str], heard: str = "", cost_usd: float = 0.0) -> UserMessage:
    """The user's message from a chat answer, as tau2 reads it.

    `tools` are the names of the tools that the user has, `heard` is what the agent said last. Raises UnusableAnswer.

    >>> body = {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "My phone is dead."}}]}
    >>> read_user_answer(body, tools=()).content
    'My phone is dead.'
    """
    choice = first_choice(body)
    message = _object(choice.get("message"), "its message is not an object")
    match ending_of(choice):
        case Ending.STOP:
            pass
        case Ending.LENGTH:
            raise UnusableAnswer("its answer was cut at the limit of its tokens")
        case Ending.FILTER:
            raise UnusableAnswer("a content filter ended its answer")
        case Ending.BROKEN:
            raise UnusableAnswer(f"its answer ended with finish_reason `{one_line(str(choice.get('finish_reason')))}`")
    if message.get("role") not in ("assistant", None):
        raise UnusableAnswer("its message has a role other than `assistant`")
    said = answer_text(body)
    calls = _calls(message.get("tool_calls"), tools)
    _check_text(said, heard)
    if not calls and not can_be_seen(said):
        raise UnusableAnswer("its answer was empty")
    usage = user_usage(body)
    return UserMessage(
        role="user",
        content=None if message.get("content") is None else said,
        tool_calls=calls or None,
        cost=cost_usd,
        usage={"completion_tokens": usage.completion_tokens, "prompt_tokens": usage.prompt_tokens},
        raw_data=choice,
    )


def answer_text(body: dict[str, Any]) -> str:
    """What a chat answer says; "" for a call alone. Raises UnusableAnswer: it is no text, or the model refused."""
    message = _object(first_choice(body).get("message"), "its message is not an object")
    try:
        content = read_content(message)
    except NotText as error:
        raise UnusableAnswer(f"its answer has {one_line(str(error))}") from None
    if content.refusal:
        raise UnusableAnswer(f"it refused: {one_line(content.refusal)}")
    return content.text


def user_usage(body: dict[str, Any]) -> Usage:
    """The tokens of an answer, usable or not; 0 where the server does not count them."""
    counted = body.get("usage")
    usage = cast("dict[str, Any]", counted) if isinstance(counted, dict) else {}
    return Usage(prompt_tokens=_count(usage.get("prompt_tokens")), completion_tokens=_count(usage.get("completion_tokens")))


def first_choice(body: dict[str, Any]) -> dict[str, Any]:
    """The choice of a chat answer. Raises UnusableAnswer."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise UnusableAnswer("its answer has no choices")
    return _object(cast("list[Any]", choices)[0], "its choice is not an object")


def _calls(listed: Any, tools: Collection[str]) -> list[ToolCall]:
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise UnusableAnswer("its tool calls are not a list")
    calls: list[ToolCall] = []
    for number, one in enumerate(cast("list[Any]", listed)):
        call = _object(one, "a tool call is not an object")
        function = _object(call.get("function"), "a tool call has no function")
        name = function.get("name")
        if not isinstance(name, str) or name not in tools:
            raise UnusableAnswer(f"it called `{one_line(str(name))[:100]}`, a tool that this user does not have")
        call_id = call.get("id")
        calls.append(
            ToolCall(
                id=call_id if isinstance(call_id, str) and call_id else f"call_{number}",
                name=name,
                arguments=_arguments(name, function.get("arguments")),
                requestor="user",
            )
        )
    return calls


def _arguments(name: str, value: Any) -> dict[str, Any]:
    """The arguments of a call: an object, or its JSON text; nothing and empty text are no arguments."""
    try:
        read = read_arguments(value)
    except ValueError:
        raise UnusableAnswer(f"the arguments of its call of `{name}` are not JSON") from None
    arguments = _object(read, f"the arguments of its call of `{name}` are not an object")
    if not _is_text(json.dumps(arguments, ensure_ascii=False)):
        raise UnusableAnswer(f"the arguments of its call of `{name}` are not Unicode text")
    return arguments


def _check_text(text: str, heard: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise UnusableAnswer(f"its answer has {len(text)} characters")
    if not _is_text(text):
        raise UnusableAnswer("its answer is not Unicode text")
    if mark := MARKUP.search(text):
        raise UnusableAnswer(f"it wrote `{one_line(mark[0])}` as text, which its server should have parsed")
    if SPEAKS_AS_AGENT.search(text) or (len(heard) >= ECHO_CHARACTERS and text.strip() == heard.strip()):
        raise UnusableAnswer("it spoke as the agent")


# Letters and a symbol that have no ink: the fillers of Hangul, the blank of Braille.
BLANKS = frozenset("\u115f\u1160\u3164\uffa0\u2800")


def can_be_seen(text: str) -> bool:
    """Whether a text has a character with ink: not white space, of no width, a control, nor a mark without a letter.

    >>> can_be_seen("Yes."), can_be_seen(" \\u200b\\ufeff\\u2800")
    (True, False)
    """
    return any(char not in BLANKS and unicodedata.category(char)[0] not in "ZCM" for char in text)


def _object(value: Any, problem: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UnusableAnswer(problem)
    return cast("dict[str, Any]", value)


def _is_text(text: str) -> bool:
    """Whether it can be written: JSON can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
