"""Between our messages and those of OpenAI-compatible APIs.

Pinned here:

- the system prompt is the native protocol's, so an API model and a checkpoint are told the same
- results get the ids of their calls, in order, over several turns and several calls a turn
- a call that has no result, and a result that has no call, go as text: APIs refuse both
- what the provider sent (thoughts, signatures, call ids) goes back as it came, in its own episode and only there
- whatever tool arguments an API sends, `TranscriptCodec.parse` gives actions or says what is wrong: never a crash
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tau2rl.chat.native import system_prompt
from tau2rl.chat.transcript import TranscriptCodec, read
from tau2rl.errors import MalformedTurn, PolicyFailure
from tau2rl.policy.openai_format import OwnMessages, finish_of, line_of, read_answer, to_openai
from tau2rl.types import Actions, CallTool, FinishReason, MalformedKind, Message, Opening, Say, Think

LOOKUP = CallTool(name="get_user", arguments={"id": "u1"})
CANCEL = CallTool(name="cancel", arguments={})
TOOLS = tuple(
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"id": {"type": "string"}}}}}
    for name in ("get_user", "cancel")
)


def answer(content: Any, *calls: tuple[Any, Any]) -> dict[str, Any]:
    """An assistant message as a server sends it."""
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "content": content, "tool_calls": made or None}


def parse(message: dict[str, Any]) -> Actions:
    return TranscriptCodec().parse(line_of(message), TOOLS)


def malformed(message: dict[str, Any]) -> MalformedKind:
    with pytest.raises(MalformedTurn) as caught:
        parse(message)
    return caught.value.kind


def test_the_system_prompt_is_the_native_protocols() -> None:
    (system,) = to_openai(Opening(domain_policy="# Policy", messages=(), tools=()))
    assert system == {"role": "system", "content": system_prompt("# Policy")}


def test_results_get_the_ids_of_their_calls_in_order() -> None:
    messages = (
        Message(role="user", content="Hi"),
        Message(role="assistant", content="One moment.", tool_calls=(LOOKUP, CANCEL)),
        Message(role="tool", content="found"),
        Message(role="tool", content="cancelled"),
        Message(role="assistant", tool_calls=(LOOKUP,)),
        Message(role="tool", content="gone", error=True),
        Message(role="assistant", content="Done."),
    )
    user, first, *results, second, third, done = to_openai(Opening(domain_policy="", messages=messages, tools=()))[1:]
    assert user == {"role": "user", "content": "Hi"}
    assert first["content"] == "One moment."
    assert [call["id"] for call in first["tool_calls"]] == ["call00000", "call00001"]
    assert first["tool_calls"][0]["function"] == {"name": "get_user", "arguments": '{"id": "u1"}'}
    assert results == [
        {"role": "tool", "content": "found", "tool_call_id": "call00000"},
        {"role": "tool", "content": "cancelled", "tool_call_id": "call00001"},
    ]
    assert (second["content"], second["tool_calls"][0]["id"], third["tool_call_id"]) == (None, "call00002", "call00002")
    assert done == {"role": "assistant", "content": "Done."}


def test_a_call_that_was_not_carried_out_is_text_and_takes_no_id() -> None:
    rocket = CallTool(name="launch_rocket", arguments={"to": "moon"})
    messages = (
        Message(role="assistant", content="One moment.", tool_calls=(rocket,)),
        Message(role="user", content="FORMAT ERROR"),
        Message(role="assistant", tool_calls=(LOOKUP,)),
        Message(role="tool", content="found"),
        Message(role="assistant", tool_calls=(rocket,)),
    )
    wrong, repair, call, result, last = to_openai(Opening(domain_policy="", messages=messages, tools=()))[1:]
    text = '[this call was not carried out: launch_rocket with {"to": "moon"}]'
    assert wrong == {"role": "assistant", "content": f"One moment.\n{text}"}
    assert repair == {"role": "user", "content": "FORMAT ERROR"}
    assert (call["tool_calls"][0]["id"], result["tool_call_id"]) == ("call00000", "call00000")
    assert last == {"role": "assistant", "content": text}


@given(
    st.lists(
        st.sampled_from(
            [
                Message(role="user", content="Hi"),
                Message(role="assistant", content="Yes"),
                Message(role="assistant", tool_calls=(LOOKUP,)),
                Message(role="assistant", tool_calls=(LOOKUP, CANCEL)),
                Message(role="tool", content="found"),
            ]
        )
    )
)
def test_whatever_the_history_every_call_has_its_result_and_every_result_its_call(messages: list[Message]) -> None:
    sent = to_openai(Opening(domain_policy="", messages=tuple(messages), tools=()))
    assert len(sent) == 1 + len(messages)
    waiting: list[str] = []
    for message in [*sent, {"role": "end"}]:
        if message["role"] == "tool":
            assert message["tool_call_id"] == waiting.pop(0)
        else:
            assert not waiting
            waiting = [call["id"] for call in message.get("tool_calls", ())]


def test_text_and_calls_become_actions() -> None:
    assert parse(answer("Hello.\nÄ ###")) == (Say(text="Hello.\nÄ ###"),)
    assert parse(answer(None, ("get_user", '{"id": "u1"}'), ("cancel", "{}"))) == (LOOKUP, CANCEL)
    assert parse(answer("Wait.", ("cancel", "{}"))) == (Say(text="Wait."), CANCEL)


@pytest.mark.parametrize("nothing", ["", " ", "null", None])
def test_no_arguments_at_all_are_none(nothing: Any) -> None:
    assert parse(answer(None, ("cancel", nothing))) == (CANCEL,)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ('{"id": "u1"', MalformedKind.ARGUMENTS_NOT_AN_OBJECT),
        ("u1", MalformedKind.ARGUMENTS_NOT_AN_OBJECT),
        ('["u1"]', MalformedKind.ARGUMENTS_NOT_AN_OBJECT),
        ('{"id": NaN}', MalformedKind.BAD_JSON),
        ("[" * 100_000, MalformedKind.ARGUMENTS_NOT_AN_OBJECT),
        ('{"id": 5}', MalformedKind.WRONG_ARGUMENTS),
    ],
)
def test_bad_arguments_are_the_models_malformed_turn(arguments: str, kind: MalformedKind) -> None:
    assert malformed(answer(None, ("get_user", arguments))) is kind


def test_an_invented_tool_and_a_call_without_a_name_are_malformed() -> None:
    assert malformed(answer(None, ("launch_rocket", "{}"))) is MalformedKind.UNKNOWN_TOOL
    assert malformed(answer(None, (None, "{}"))) is MalformedKind.MISSING_NAME


@pytest.mark.parametrize("content", ["", None, "  \n"])
def test_an_answer_with_nothing_in_it_is_the_models_malformed_turn(content: str | None) -> None:
    assert malformed(answer(content)) is MalformedKind.NO_CONTENT


def test_content_in_parts_is_their_text() -> None:
    thoughts = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    parts = [thoughts, {"type": "text", "text": "Hel"}, {"type": "output_text", "text": "lo", "annotations": []}, "."]
    assert parse(answer(parts)) == (Think(text="Hm."), Say(text="Hello."))
    assert parse(answer([{"text": {"value": "Hello."}}, {"type": "redacted_thinking", "data": "x"}])) == (Say(text="Hello."),)


def test_a_refusal_is_what_the_model_says() -> None:
    told = {"role": "assistant", "content": None, "refusal": "I cannot do that."}
    for message in (told, answer([{"type": "refusal", "refusal": "I cannot do that."}])):
        assert parse(message) == (Say(text="I cannot do that."),)


@pytest.mark.parametrize("content", [5, {"text": "Hi"}, [{"type": "text", "text": 5}], [5]])
def test_content_that_is_no_text_is_the_apis_failure(content: Any) -> None:
    with pytest.raises(PolicyFailure, match="the API sent content "):
        line_of(answer(content))


def test_a_part_that_is_no_text_is_the_models_malformed_turn_and_is_named() -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 100_000}"}}
    line = line_of(answer([{"type": "text", "text": "Look:"}, image, image]))
    assert len(line) < 200
    with pytest.raises(MalformedTurn, match="a part that is no text: `image_url`"):
        TranscriptCodec().parse(line, ())


@pytest.mark.parametrize("calls", ["none", 5, [None], [{"id": "a"}], [{"function": "f"}], {"function": {"name": "f"}}])
def test_tool_calls_that_are_none_are_the_apis_failure(calls: Any) -> None:
    with pytest.raises(PolicyFailure, match="tool calls that are none"):
        line_of({"role": "assistant", "content": None, "tool_calls": calls})


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ([], "without choices"),
        ({"choices": []}, "without choices"),
        ({"error": {"message": "busy"}}, "without choices: `{'error': {'message': 'busy'}}`"),
        ({"choices": [{"finish_reason": "stop"}]}, "without a message"),
        ({"choices": [{"finish_reason": "error", "message": {"content": "x"}}]}, "finish_reason `error`"),
    ],
)
def test_what_is_no_answer_is_the_apis_failure(payload: Any, words: str) -> None:
    with pytest.raises(PolicyFailure) as caught:
        read_answer(payload, max_tokens=100)
    assert words in str(caught.value)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(["content", "tool_calls", "role", "reasoning_content"])


@given(message=st.dictionaries(FIELDS, JSON_VALUES), usage=JSON_VALUES, reason=JSON_VALUES)
def test_any_json_is_an_answer_or_a_policy_failure(message: dict[str, Any], usage: Any, reason: Any) -> None:
    payload = {"choices": [{"message": message, "finish_reason": reason}], "usage": usage}
    try:
        found = read_answer(payload, max_tokens=1000)
    except PolicyFailure as failure:
        assert len(str(failure)) < 300
    else:
        assert 0 < len(found.completion.token_ids) <= 1000


def test_what_the_provider_sent_goes_back_as_it_came_where_it_stood() -> None:
    codec, own = TranscriptCodec(), OwnMessages(sessions=2)
    raw = answer("Wait.", ("get_user", '{"id":"u1"}')) | {"reasoning_content": "I think.", "refusal": None, "annotations": []}
    raw["tool_calls"][0] |= {"id": "Ab3dE6gH9", "extra_content": {"google": {"thought_signature": "abc"}}}
    prompt = codec.open(
        Opening(domain_policy="", messages=(Message(role="assistant", content="Hi!"), Message(role="user")), tools=TOOLS)
    )
    line = line_of(raw)
    own.add("a", prompt, line, raw)
    after = codec.extend(prompt, line, [Message(role="tool", content="found")])
    call, result = to_openai(read(after), own.of("a", after))[3:]
    assert call == {"role": "assistant", "content": "Wait.", "reasoning_content": "I think.", "tool_calls": raw["tool_calls"]}
    assert result["tool_call_id"] == "Ab3dE6gH9"
    assert own.of("b", after) == {}  # another episode
    other = codec.extend(prompt, codec.write((Say(text="Hm."),)), [Message(role="user", content="?")])
    assert own.of("a", other) == {}  # another try of it


def test_a_call_that_was_not_carried_out_does_not_go_back_as_one() -> None:
    codec, own = TranscriptCodec(), OwnMessages(sessions=2)
    raw = answer(None, ("get_user", '{"id": 5}')) | {"reasoning_content": "I think."}
    prompt = codec.open(Opening(domain_policy="", messages=(Message(role="user", content="Hi"),), tools=TOOLS))
    own.add("a", prompt, line_of(raw), raw)
    after = codec.extend(prompt, line_of(raw), [Message(role="user", content="FORMAT ERROR")])
    wrong, repair = to_openai(read(after), own.of("a", after))[2:]
    assert "tool_calls" not in wrong and "get_user" in wrong["content"] and wrong["reasoning_content"] == "I think."
    assert repair == {"role": "user", "content": "FORMAT ERROR"}


def test_a_call_without_an_id_gets_one() -> None:
    codec, own = TranscriptCodec(), OwnMessages(sessions=2)
    raw = answer(None, ("cancel", ""))
    prompt = codec.open(Opening(domain_policy="", messages=(Message(role="user", content="Hi"),), tools=TOOLS))
    own.add("a", prompt, line_of(raw), raw)
    after = codec.extend(prompt, line_of(raw), [Message(role="tool", content="ok")])
    call, result = to_openai(read(after), own.of("a", after))[2:]
    assert call["tool_calls"][0]["id"] == result["tool_call_id"] == "call00000"


def test_the_session_that_was_not_asked_for_longest_is_forgotten() -> None:
    own = OwnMessages(sessions=2)
    for name in ("a", "b", "a", "c"):
        own.add(name, b"{}\n", b"line\n", {"content": name})
    assert [own.of(name, b"{}\nline\n") for name in ("a", "b", "c")] == [{0: {"content": "a"}}, {}, {0: {"content": "c"}}]


@given(content=st.none() | st.text(), arguments=st.text() | st.dictionaries(st.text(), st.floats() | st.text()).map(json.dumps))
def test_any_answer_becomes_actions_or_a_malformed_turn(content: str | None, arguments: str) -> None:
    ids = line_of(answer(content, ("get_user", arguments)))
    assert ids[-1] == 10
    assert ids.count(10) == 1
    try:
        actions = TranscriptCodec().parse(ids, TOOLS)
    except MalformedTurn:
        return
    assert CallTool(name="get_user", arguments=json.loads(arguments or "{}")) in actions


@pytest.mark.parametrize("reason", ["stop", "tool_calls", None, "", "eos", "STOP", "MALFORMED_FUNCTION_CALL"])
def test_the_model_ended_its_turn(reason: str | None) -> None:
    assert finish_of({"finish_reason": reason}) is FinishReason.STOP


@pytest.mark.parametrize("reason", ["length", "model_length", "max_tokens", "MAX_TOKENS"])
def test_the_model_reached_its_limit(reason: str) -> None:
    assert finish_of({"finish_reason": reason}) is FinishReason.LENGTH


@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "sensitive", "refusal"])
def test_a_filter_is_not_the_models_doing(reason: str) -> None:
    with pytest.raises(PolicyFailure, match="content filter"):
        finish_of({"finish_reason": reason})


@pytest.mark.parametrize("reason", ["abort", "error", "network_error", "insufficient_system_resource", "repetition", 5, {}, True])
def test_an_answer_that_something_else_ended_is_not_the_models_doing(reason: Any) -> None:
    with pytest.raises(PolicyFailure, match="ended the answer with finish_reason"):
        finish_of({"finish_reason": reason})
    with pytest.raises(PolicyFailure, match="ended the answer"):  # litellm's words for it
        finish_of({"finish_reason": "stop", "provider_specific_fields": {"native_finish_reason": reason or "abort"}})


@pytest.mark.parametrize(
    ("content", "said", "thought"),
    [
        ("<think>Not theirs. ###STOP###</think>\n\nDone.", "Done.", "Not theirs. ###STOP###"),
        ("\n<think>\na\n</think>b", "b", "a"),
        ("the template opened it</think>\nDone.", "Done.", "the template opened it"),
        ("<think>without an end", "", "without an end"),
        ("<think></think>Done.", "Done.", ""),
        ("Write <think>x</think> to me.", "Write <think>x</think> to me.", ""),
    ],
)
def test_a_thought_in_the_text_is_set_apart(content: str, said: str, thought: str) -> None:
    line = json.loads(bytes(line_of({"role": "assistant", "content": content})))
    assert (line["content"], line.get("reasoning_content", "")) == (said, thought)
