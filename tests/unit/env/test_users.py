"""What the simulated customers know of a conversation, pinned here:

- a scripted customer reads each message once, and knows then what one reading of the whole conversation says;
- the messages that the LLM customer's model is sent are tau2's, turn for turn, also behind a call that was asked again;
- each of them is made once for a conversation, and not at every turn again.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given, strategies as st

from tau2rl.config import UserConfig
from tau2rl.env.scripted_user import TRANSFER_TOOL, ScriptedUser, _Heard
from tau2rl.env.user_simulator import LlmUser, _FlippedOnce

from tau2.data_model.message import AssistantMessage, MultiToolMessage, ToolCall, ToolMessage, UserMessage  # isort: skip
from tau2.data_model.tasks import Action
from tau2.user import user_simulator
from tau2.user.base import UserState
from tau2.utils.llm_utils import to_litellm_messages

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


def test_a_scripted_customer_does_not_look_at_a_message_again() -> None:
    criteria = SimpleNamespace(actions=GOLD, communicate_info=["blue"])
    session: Any = SimpleNamespace(task=SimpleNamespace(evaluation_criteria=criteria), trajectory=[])
    session.trajectory.append(UserMessage(role="user", content="Hello."))
    user, answers = ScriptedUser(session, patience=9), list[str]()
    for message in (said("blue"), *(said("Booked.", call("book", {"seat": i})) for i in range(3))):
        session.trajectory.append(message)
        answers.append(user.generate_next_message(message, None)[0].content or "")
        session.trajectory = [None] * len(session.trajectory)  # whatever looks at one of them finds nothing there
    assert answers == ["Yes, please go ahead."] * 3 + ["Thank you, that is all I needed. ###STOP###"]


# --- the LLM customer ---

HISTORY = [
    said("Hi!"),
    UserMessage(role="user", content="My phone is dead."),
    said("Please reboot it."),
    UserMessage(role="user", content=None, tool_calls=[call("reboot", {}, "user"), call("look", {"at": [1]}, "user")]),
    ToolMessage(id="c", role="tool", content="done", requestor="user"),
    ToolMessage(id="d", role="tool", content=None, requestor="user"),
    UserMessage(role="user", content="It works. ###STOP###"),
]


def test_a_growing_history_is_flipped_as_tau2_flips_the_whole() -> None:
    state, before = _FlippedOnce(system_messages=[], messages=[]), list[Any]()
    for length, message in enumerate(HISTORY, 1):
        state.messages.append(message)
        flipped = state.flip_roles()
        theirs = UserState(system_messages=[], messages=HISTORY[:length]).flip_roles()
        assert to_litellm_messages(flipped) == to_litellm_messages(theirs)
        assert [type(m) for m in flipped] == [type(m) for m in theirs]
        assert all(new is old for new, old in zip(flipped, before, strict=False))
        before = flipped


class Asked:
    """In place of tau2's function that calls litellm: keeps what a model would be sent, and answers from a list."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers, self.sent = iter(answers), list[list[Any]]()

    def __call__(self, *, messages: list[Any], **_: Any) -> AssistantMessage:
        self.sent.append(to_litellm_messages(messages))
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return said(answer) if isinstance(answer, str) else said(None, answer)


def test_the_model_is_sent_what_tau2_sends_it(monkeypatch: Any) -> None:
    answers = ["My phone is dead.", call("reboot", {}), "Done.", "Bye. ###STOP###"]
    session: Any = SimpleNamespace(
        loaded=SimpleNamespace(user_tools=[SimpleNamespace(name="reboot")]),
        task=SimpleNamespace(user_scenario="a dead phone"),
        aside=lambda call: call(),
        doing="",
    )
    config = UserConfig(kind="llm", model="openai/any", api_base="http://127.0.0.1:9", retries=2)
    tool = ToolMessage(id="c", role="tool", content="ok", requestor="user")
    heard = [said("Hi!"), said("Reboot it."), MultiToolMessage(role="tool", tool_messages=[tool]), said("Well?")]

    def sent_by(user: Any, scripted: list[Any]) -> list[list[Any]]:
        asked = Asked(scripted)
        monkeypatch.setattr(user_simulator, "generate", asked)
        state = user.get_init_state()
        for message in heard:
            _, state = user.generate_next_message(message, state)
        return asked.sent

    theirs = user_simulator.UserSimulator(tools=session.loaded.user_tools, instructions="a dead phone", llm="openai/any")
    expected = sent_by(theirs, answers)
    assert [len(messages) for messages in expected] == [2, 4, 6, 8]  # the system's, and two a turn
    assert sent_by(LlmUser(session, config, seed=1), answers) == expected
    refused = [*answers[:2], "<tool_call>", ValueError("no"), *answers[2:]]
    assert sent_by(LlmUser(session, config, seed=1), refused) == [*expected[:2], *[expected[2]] * 3, expected[3]]
