"""What the user simulators know of a conversation and make of it, pinned here:

- a scripted user reads each message once, and knows then what one reading of the whole conversation says;
- a scripted user looks at what the agent names on their phone, in its order, and stops when it is only ever the same;
- the requests that the LLM user's model is sent are those that the untouched tau2 sends through litellm, field for field, turn
  for turn, also behind a call that was asked again; its answers become the same messages, over our client and over litellm;
- each message is made once for a conversation, and the schemas of the user's tools once for a domain;
- our client asks where it can: `openai/NAME` with `api_base`, no proxy in between; litellm asks everyone else;
- a connection is kept from one answer to the next, also of another episode, and one that the server has closed is replaced;
- an answer that a filter, a limit or an error of the server ended is asked for again;
- an answer of 100 MB, one without an end and a gzip bomb cost bounded memory;
- the key goes where the settings say and into no message.
"""

from __future__ import annotations

import itertools
import time
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tau2rl.config import UserConfig
from tau2rl.env import chat_client, user_simulator
from tau2rl.env.chat_client import LitellmClient, OpenAIClient, is_direct
from tau2rl.env.domain import domain
from tau2rl.env.scripted_user import TRANSFER_TOOL, ScriptedUser, _Heard
from tau2rl.env.user_simulator import LlmUser
from tau2rl.errors import UserError, UserSimulatorFailure
from tau2rl.settings import litellm_options
from tests.stubs.http import Request, Response
from tests.stubs.openai import OpenAIStub

from tau2.data_model.message import AssistantMessage, MultiToolMessage, ToolCall, ToolMessage, UserMessage
from tau2.data_model.tasks import Action
from tau2.user.user_simulator import UserSimulator

GOLD = [Action(action_id=str(i), name="book", arguments={"seat": i}, requestor="assistant") for i in range(3)]
WORDS = ["1000", "blue", ""]


def call(name: str, arguments: dict[str, Any], requestor: Any = "assistant") -> ToolCall:
    return ToolCall(id="c", name=name, arguments=arguments, requestor=requestor)


def said(text: str | None, *calls: ToolCall) -> AssistantMessage:
    return AssistantMessage(role="assistant", content=text, tool_calls=list(calls) or None)


CALLS = st.sampled_from([call("book", {"seat": i}) for i in range(4)] + [call(TRANSFER_TOOL, {})])
MESSAGES = st.one_of(
    st.builds(said, st.sampled_from([None, "", "It is 1,000.", "The BLUE one.", "1000 blue"])),
    st.lists(CALLS, min_size=1, max_size=3).map(lambda calls: said(None, *calls)),
    st.just(UserMessage(role="user", content="1000")),
    st.just(ToolMessage(id="c", role="tool", content="blue")),
)


def knowledge(heard: _Heard) -> tuple[Any, ...]:
    return heard.user, heard.transferred, heard.done, [a.action_id for a in heard.undone], heard.unsaid


@given(st.lists(st.lists(MESSAGES, max_size=3), max_size=6))
def test_reading_on_comes_to_what_reading_all_comes_to(parts: list[list[Any]]) -> None:
    heard, conversation = _Heard(actions=GOLD, words=WORDS), list[Any]()
    for part in parts:
        conversation += part
        heard.read(conversation)
        whole = _Heard(actions=GOLD, words=WORDS)
        whole.read(conversation)
        assert knowledge(heard) == knowledge(whole)


def test_what_is_known_is_counted_on_paper() -> None:
    heard = _Heard(actions=GOLD, words=["1000", "blue", "blue"])
    heard.read([said("It is 1,000."), said(None, call("book", {"seat": 1}), call("book", {"seat": 9}))])
    assert knowledge(heard) == (False, False, 1, ["0", "2"], ["blue", "blue"])


def test_a_scripted_user_does_not_look_at_a_message_again() -> None:
    criteria = SimpleNamespace(actions=GOLD, communicate_info=["blue"])
    simulation: Any = SimpleNamespace(
        task=SimpleNamespace(evaluation_criteria=criteria), trajectory=[], loaded=SimpleNamespace(user_reads={})
    )
    simulation.trajectory.append(UserMessage(role="user", content="Hello."))
    user, answers = ScriptedUser(simulation, max_stalled_turns=9), list[str]()
    for message in (said("blue"), *(said("Booked.", call("book", {"seat": i})) for i in range(3))):
        simulation.trajectory.append(message)
        answers.append(user.generate_next_message(message, None)[0].content or "")
        simulation.trajectory = [None] * len(simulation.trajectory)  # whatever looks at one of them finds nothing there
    assert answers == ["Yes, please go ahead."] * 3 + ["Thank you, that is all I needed. ###STOP###"]


def test_a_scripted_user_looks_at_what_is_named_and_at_the_same_again_only_so_often() -> None:
    action = Action(action_id="0", name="toggle_data", arguments={}, requestor="user")
    task = SimpleNamespace(evaluation_criteria=SimpleNamespace(actions=[action], communicate_info=[]))
    simulation: Any = SimpleNamespace(task=task, trajectory=[UserMessage(role="user", content="Hi")], loaded=domain("telecom"))
    user = ScriptedUser(simulation, max_stalled_turns=2)

    def answer(text: str) -> list[tuple[str, Any]] | str | None:
        said_by_user = user.generate_next_message(said(text), None)[0]
        return [(c.name, c.arguments) for c in said_by_user.tool_calls or ()] or said_by_user.content

    bar = ("check_status_bar", {})
    assert answer("Look at it (check_status_bar) and check sim status.") == [bar, ("check_sim_status", {})]
    assert answer("May your messaging app do it (check_app_permissions)?") == [
        ("check_app_permissions", {"app_name": "messaging"})
    ]
    assert answer("Check app permissions!") == "Yes, please go ahead."  # of which app?
    assert answer("Run a speed test (run_speed_test) after you toggle data.") == [("run_speed_test", {}), ("toggle_data", {})]
    assert answer("And check_status_bar?") == [bar]  # data are on now
    assert answer("check_status_bar again") == [bar]
    assert answer("check_status_bar once more") == "Thank you, that is all I needed. ###STOP###"


# --- the LLM user ---

TASK = next(iter(domain("telecom").tasks("test").values()))
ANSWERS: list[Any] = [
    "My phone is dead.\nReally.",
    [("reboot_device", {}), ("grant_app_permission", {"app_name": "messaging", "permission": "sms"})],
    "Done.",
    "It works. ###STOP###",
]
HEARD = [
    said("Hi!"),
    said("Reboot it."),
    MultiToolMessage(
        role="tool",
        tool_messages=[
            ToolMessage(id="call_0", role="tool", content="ok", requestor="user"),
            ToolMessage(id="call_1", role="tool", content="Error: no", requestor="user", error=True),
        ],
    ),
    said("Well?"),
]


def simulation() -> Any:
    """What a user simulator needs of one."""
    return SimpleNamespace(loaded=domain("telecom"), task=TASK, aside=lambda call: call())


def config(server: OpenAIStub, **changes: Any) -> UserConfig:
    return UserConfig(
        kind="llm", model="openai/any", api_base=server.api_base, **{"retries": 2, "timeout_seconds": 20.0, **changes}
    )


def talk(user: Any, heard: list[Any] = HEARD) -> list[UserMessage]:
    """The user's messages in answer to what it hears."""
    state, answers = user.get_init_state(), list[UserMessage]()
    for message in heard:
        answer, state = user.generate_next_message(message, state)
        answers.append(answer)
    return answers


def in_turn(answers: list[Any]) -> Any:
    """A stub's answers, one after another."""
    left = iter(answers)
    return lambda messages, tools: next(left)


def essence(message: UserMessage) -> dict[str, Any]:
    """A message but for its clock and litellm's own notes."""
    return message.model_dump(exclude={"timestamp", "raw_data"})


def test_both_clients_hold_tau2s_own_conversation() -> None:
    with OpenAIStub(answer=in_turn(ANSWERS)) as server:
        options = {
            "api_base": server.api_base,
            "api_key": "none",
            "num_retries": 0,
            "temperature": 0.7,
            "seed": 5,
            **litellm_options(),
        }
        theirs = talk(
            UserSimulator(tools=domain("telecom").user_tools, instructions=TASK.user_scenario, llm="openai/any", llm_args=options)  # pyright: ignore[reportArgumentType]
        )
        bodies = server.bodies
    assert [len(body["messages"]) for body in bodies] == [2, 4, 7, 9]  # the system's, and what was said
    for client in (OpenAIClient, LitellmClient):
        with OpenAIStub(answer=in_turn(ANSWERS)) as server:
            user = LlmUser(simulation(), config(server), seed=5)
            if client is LitellmClient:
                user._model._client = LitellmClient(config(server), lambda call: call())
            assert isinstance(user._model._client, client)
            ours = talk(user)
        assert server.bodies == bodies
        assert [essence(message) for message in ours] == [essence(message) for message in theirs]
        assert user.usage.completion_tokens == sum(message.usage["completion_tokens"] for message in theirs if message.usage)


def test_a_call_that_was_asked_again_leaves_no_trace_in_the_conversation() -> None:
    with OpenAIStub(answer=in_turn(ANSWERS)) as server:
        talk(LlmUser(simulation(), config(server), seed=5))
        expected = [body["messages"] for body in server.bodies]
    refused = [*ANSWERS[:2], "<tool_call>", "", *ANSWERS[2:]]
    with OpenAIStub(answer=in_turn(refused)) as server:
        talk(LlmUser(simulation(), config(server), seed=5))
        assert [body["messages"] for body in server.bodies] == [*expected[:2], *[expected[2]] * 3, expected[3]]
        assert [body["seed"] for body in server.bodies] == [5, 5, 5, 6, 7, 7]


def test_messages_and_schemas_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    as_sent = user_simulator.as_sent
    monkeypatch.setattr(user_simulator, "as_sent", lambda message: made.append(message) or as_sent(message))
    schemas = property(lambda tool: pytest.fail("a schema was made again"))
    monkeypatch.setattr(type(domain("telecom").agent_tools[0]), "openai_schema", schemas)
    with OpenAIStub(answer=in_turn(ANSWERS)) as server:
        talk(LlmUser(simulation(), config(server), seed=5))
    # Everything but the last answer, for which nobody asked.
    assert len(made) == 8
    assert len({id(message) for message in made}) == 8


@pytest.mark.parametrize(
    ("model", "api_base", "proxies", "direct"),
    [
        ("openai/any", "http://127.0.0.1:1/v1", {}, True),
        ("openai/any", "http://127.0.0.1:1/v1", {"http_proxy": "http://proxy:1"}, True),  # loopback is never asked through one
        ("openai/any", "http://far.example/v1", {"http_proxy": "http://proxy:1"}, False),
        ("openai/any", "http://far.example/v1", {"http_proxy": "http://proxy:1", "no_proxy": "far.example"}, True),
        ("openai/any", "https://far.example/v1", {}, True),
        ("openai/gpt-4.1-mini", "https://api.openai.com/v1", {}, False),  # litellm knows its price
        ("openai/gpt-4.1-mini", None, {}, False),
        ("gpt-4.1-mini", None, {}, False),
        ("anthropic/any", "http://127.0.0.1:1/v1", {}, False),
    ],
)
def test_our_client_asks_where_it_can(
    monkeypatch: pytest.MonkeyPatch, model: str, api_base: str | None, proxies: dict[str, str], direct: bool
) -> None:
    for name, value in {"http_proxy": "", "https_proxy": "", "no_proxy": "", **proxies}.items():
        monkeypatch.setenv(name, value)
        monkeypatch.delenv(name.upper(), raising=False)
    assert is_direct(UserConfig(kind="llm", model=model, api_base=api_base)) is direct


class Counting(OpenAIStub):
    """Counts its connections, and can close each of them behind an answer."""

    def __init__(self, *, close: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.close, self.connections = close, 0

    async def _serve(self, reader: Any, writer: Any) -> None:
        self.connections += 1
        await super()._serve(reader, writer)

    async def _write(self, writer: Any, response: Response, mode: str) -> bool:
        return await super()._write(writer, response, mode) and not self.close


def test_a_connection_is_kept_from_one_answer_to_the_next() -> None:
    with Counting(answer=in_turn([*ANSWERS, *ANSWERS])) as server:
        for _ in range(2):
            talk(LlmUser(simulation(), config(server), seed=5))
        assert (len(server.requests), server.connections) == (8, 1)


def test_a_connection_that_the_server_closed_is_replaced() -> None:
    with Counting(answer=in_turn(ANSWERS), close=True) as server:
        talk(LlmUser(simulation(), config(server, retries=1), seed=5))
        assert (len(server.requests), server.connections) == (4, 4)


@pytest.mark.parametrize("behind_litellm", [False, True])
def test_a_server_that_limits_its_rate_gets_the_peace_that_it_asks_for(
    monkeypatch: pytest.MonkeyPatch, behind_litellm: bool
) -> None:
    class Busy(OpenAIStub):
        async def reply(self, request: Request, mode: str) -> Response:
            asked_at.append(time.monotonic())
            if mode == "ok":
                return await super().reply(request, mode)
            return Response(status=429, payload={"error": {"message": "Rate limit reached"}}, headers={"Retry-After": "1"})

    asked_at = list[float]()
    if behind_litellm:
        monkeypatch.setattr(user_simulator, "chat_client", LitellmClient)
    with Busy(answer=in_turn(["Hello."]), mode=["429", "429", "ok"]) as server:
        talk(LlmUser(simulation(), config(server, retries=0), seed=5), HEARD[:1])
        assert [body["seed"] for body in server.bodies] == [5, 5, 5]
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(asked_at))


def test_a_server_that_asks_for_longer_than_a_call_may_take_is_a_failure_of_the_user() -> None:
    class Closed(OpenAIStub):
        async def reply(self, request: Request, mode: str) -> Response:
            return Response(status=503, payload={"error": "come back tomorrow"}, headers={"Retry-After": "86400"})

    with (
        Closed() as server,
        pytest.raises(UserSimulatorFailure, match=r"took no call within 0\.6 s: HTTP 503: come back tomorrow"),
    ):
        talk(LlmUser(simulation(), config(server, retries=1, timeout_seconds=0.3), seed=5), HEARD[:1])


def test_an_account_without_money_is_not_waited_for() -> None:
    class Poor(OpenAIStub):
        async def reply(self, request: Request, mode: str) -> Response:
            error = {"message": "You exceeded your current quota, please check your plan and billing details."}
            return Response(status=429, payload={"error": error})

    with Poor() as server, pytest.raises(UserSimulatorFailure, match="refused the request: HTTP 429: You exceeded"):
        talk(LlmUser(simulation(), config(server), seed=5), HEARD[:1])
    assert len(server.requests) == 1


def test_a_server_that_drips_is_not_waited_for_beyond_the_deadline() -> None:
    with OpenAIStub(mode="drip") as server, pytest.raises(UserSimulatorFailure, match=r"no answer within 0\.3 s"):
        talk(LlmUser(simulation(), config(server, retries=0, timeout_seconds=0.3), seed=5), HEARD[:1])


@pytest.mark.parametrize("mode", ["huge", "endless", "gzip_bomb"])
@pytest.mark.parametrize("behind_litellm", [False, True])
def test_an_answer_that_is_too_large_is_a_failure_in_bounded_memory(
    monkeypatch: pytest.MonkeyPatch, mode: str, behind_litellm: bool
) -> None:
    if behind_litellm:
        monkeypatch.setattr(user_simulator, "chat_client", LitellmClient)
    with OpenAIStub(answer=in_turn(["Hello."]), mode=["ok", mode]) as server:
        user = LlmUser(simulation(), config(server, retries=0), seed=5)
        talk(user, HEARD[:1])  # what litellm imports at its first call is not counted
        tracemalloc.start()
        with pytest.raises(UserSimulatorFailure) as failed:
            talk(user, HEARD[:1])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # Our own client does not unpack an answer, for it asks for none that is packed.
    assert ("more than" if behind_litellm or mode != "gzip_bomb" else "compressed") in str(failed.value)
    assert len(str(failed.value)) < 350
    assert peak < 40 * 2**20


@pytest.mark.parametrize(
    "reason", ["content_filter", "length", "model_length", "abort", "error", "network_error", {"type": "abort"}]
)
def test_an_answer_that_something_else_ended_is_asked_for_again(reason: Any) -> None:
    class Ends(OpenAIStub):
        def _completion(self, body: dict[str, Any], mode: str) -> dict[str, Any]:
            answer = super()._completion(body, mode)
            answer["choices"][0]["finish_reason"] = next(reasons)
            return answer

    reasons = iter([reason, "stop", "eos_token"])
    with Ends(answer=in_turn(["My phone", "My phone is dead.", "Done."])) as server:
        answers = talk(LlmUser(simulation(), config(server, retries=1), seed=5), HEARD[:2])
    assert [answer.content for answer in answers] == ["My phone is dead.", "Done."]


# --- keys ---


def test_the_key_goes_where_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("MY_KEY", "sk-mine")
    for variable, expected in ((None, "none"), ("MY_KEY", "sk-mine")):
        with OpenAIStub() as server:
            talk(LlmUser(simulation(), config(server, api_key_env=variable), seed=5), HEARD[:1])
            assert server.requests[0].headers["authorization"] == f"Bearer {expected}"
    assert "api_key" not in LitellmClient(UserConfig(kind="llm", model="gpt-4.1-mini"), lambda call: call())._options
    with pytest.raises(UserError, match="`NO_SUCH_KEY` is not set"):
        LlmUser(simulation(), UserConfig(kind="llm", model="openai/x", api_key_env="NO_SUCH_KEY"), seed=5)


@pytest.mark.parametrize("key", ["sk-very-secret", "sk-very-secret\nX: y", "sk-very-secret-ü-\u20ac"])
@pytest.mark.parametrize("behind_litellm", [False, True])
def test_no_message_has_the_key(monkeypatch: pytest.MonkeyPatch, key: str, behind_litellm: bool) -> None:
    class Echoes(OpenAIStub):
        async def reply(self, request: Request, mode: str) -> Response:
            return Response(status=401, payload={"error": {"message": f"\x1b[2Jwrong: {request.headers['authorization']}\nat"}})

    monkeypatch.setenv("MY_KEY", key)
    if behind_litellm:
        monkeypatch.setattr(user_simulator, "chat_client", LitellmClient)
    with Echoes() as server, pytest.raises(UserSimulatorFailure) as failed:
        talk(LlmUser(simulation(), config(server, api_key_env="MY_KEY"), seed=5), HEARD[:1])
    assert "secret" not in str(failed.value)
    assert str(failed.value).isprintable()


def test_the_first_line_of_an_error_is_shown() -> None:
    assert chat_client.one_line("one\r\ntwo") == "one"
    assert len(chat_client.one_line("x" * 1000)) == 300
    assert list(itertools.accumulate(map(len, map(chat_client.one_line, ("", "Traceback ..."))))) == [0, 0]
