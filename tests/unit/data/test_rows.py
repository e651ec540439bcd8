"""Dataset rows, pinned here:

- OpenAI messages, `prompt` rows and AReaL rows are read; a row that cannot be trained on says why;
- the exact tokens of a row come back with their spans, or the row is refused.
"""

from __future__ import annotations

from typing import Any

import pytest

from tau2rl.chat.template import chat_dicts
from tau2rl.data.rows import BadRow, exact_sample, read_row
from tau2rl.types import CallTool, Message

LOOKUP = CallTool(name="get_user", arguments={"id": "u1"})


def test_openai_arguments_are_json_in_a_string_or_an_object() -> None:
    calls = [{"function": {"name": "f", "arguments": '{"x": 1}'}}, {"name": "f", "arguments": {"x": 1}}]
    row = read_row({"messages": [{"role": "assistant", "content": None, "tool_calls": calls}]}, name="here")
    assert row.messages == (Message(role="assistant", tool_calls=(CallTool(name="f", arguments={"x": 1}),) * 2),)
    assert (row.id, row.last_only) == ("here", False)


def test_an_areal_answer_is_the_turn_to_learn() -> None:
    row = read_row({"messages": [{"role": "user", "content": "Hi"}], "answer": {"role": "assistant", "content": "Ho"}}, name="n")
    assert [m.content for m in row.messages] == ["Hi", "Ho"]
    assert row.last_only


def test_a_row_has_the_name_that_its_metadata_gives() -> None:
    row = {"prompt": [{"role": "user", "content": "Hi"}], "metadata": {"id": "mock/a#0"}}
    assert read_row(row, name="n").id == "mock/a#0"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "no `messages`"),
        ({"messages": [{"role": "narrator"}]}, "narrator"),
        ({"messages": ["hello"]}, "hello"),
        ({"messages": [{"role": "user", "content": [1]}]}, "a part as int"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "no text: `video_url`"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}]}, "without a name"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}, "not JSON"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[]"}]}]}, "not an object"),
    ],
)
def test_what_cannot_be_trained_on_says_why(row: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRow, match=words):
        read_row(row, name="n")


def test_content_in_parts_is_their_text_and_their_thought() -> None:
    said = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}]
    asked = [{"type": "text", "text": "Hi", "image_url": None}]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    assert read_row({"messages": turns}, name="n").messages == (
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello.", reasoning="Hm."),
    )


@pytest.mark.parametrize("mark", ["step_loss_mask", "weight", "train", "training", "trainable", "loss_mask"])
def test_a_turn_that_is_not_to_be_learned_is_masked_in_every_dialect(mark: str) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?", mark: False}]
    assert read_row({"messages": turns}, name="n").masked == {1}
    with pytest.raises(BadRow, match="message 1 has a `train_detail`"):
        read_row({"messages": [turns[0], {**turns[1], "train_detail": [{"begin_offset": 0}]}]}, name="n")


def answered(calls: list[Any], results: list[Any]) -> dict[str, Any]:
    """A conversation with these calls, and behind them these results, each of which says whose it is."""
    made = [{"id": id, "function": {"name": "f", "arguments": "{}"}} for id in calls]
    said = [{"role": "tool", "tool_call_id": id, "content": f"of {id}"} for id in results]
    return {"messages": [{"role": "assistant", "tool_calls": made}, *said, {"role": "assistant", "content": "Done."}]}


@pytest.mark.parametrize(
    ("calls", "results", "read"),
    [
        (["a", "b", "c"], ["c", "a", "b"], ["of a", "of b", "of c"]),
        (["a", "b"], ["a"], ["of a"]),  # the other has none
        ([None, None], ["b", "a"], ["of b", "of a"]),  # nothing says otherwise
        (["a", "a"], ["a", "a"], ["of a", "of a"]),
        (["a", "b", "c"], ["b", "a"], ["of a", "of b"]),
        ([1, 2], ["2", "1"], ["of 1", "of 2"]),
        ([], ["a"], ["of a"]),  # its call stands in the text
    ],
)
def test_results_stand_in_the_order_of_their_calls(calls: list[Any], results: list[Any], read: list[str]) -> None:
    row = read_row(answered(calls, results), name="n")
    assert [m.content for m in row.messages if m.role == "tool"] == read


@pytest.mark.parametrize(("calls", "results"), [(["a", "b"], ["b"]), (["a"], ["x"]), (["a", "b"], ["b", "b"])])
def test_a_result_without_its_call_leaves_the_row_out(calls: list[Any], results: list[Any]) -> None:
    with pytest.raises(BadRow, match="where the calls before them are"):
        read_row(answered(calls, results), name="n")


def test_a_call_without_a_result_takes_none_of_a_later_one() -> None:
    user = {"role": "user", "content": "Go on."}
    first, second = answered(["a", "b"], ["a"])["messages"], answered(["c"], ["c"])["messages"]
    row = read_row({"messages": [*first[:2], user, *second]}, name="n")
    written = chat_dicts(row.messages)
    assert [one.get("tool_call_id") or [call["id"] for call in one.get("tool_calls", ())] for one in written] == [
        ["call00000", "call00001"], "call00000", [], ["call00002"], "call00002", [],
    ]  # fmt: skip
    assert read_row({"messages": written}, name="n").messages == row.messages


def test_openais_older_calls_are_read() -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "function_call": {"name": "get_user", "arguments": '{"id": "u1"}'}},
        {"role": "function", "name": "get_user", "content": "found"},
    ]
    row = read_row({"messages": turns, "functions": [{"name": "get_user", "parameters": {}}]}, name="n")
    assert row.messages[1:] == (Message(role="assistant", tool_calls=(LOOKUP,)), Message(role="tool", content="found"))
    assert row.tools == ({"type": "function", "function": {"name": "get_user", "parameters": {}}},)


def test_exact_tokens_come_back_with_their_spans() -> None:
    sample = exact_sample({"token_ids": [9, 8, 7, 6, 5], "loss_mask": [0, 1, 1, 0, 1]})
    assert sample is not None
    assert sample.turn_spans == ((1, 3), (4, 5))
    assert sample.token_ids == (9, 8, 7, 6, 5) and sample.logprobs is None
    assert exact_sample({"messages": []}) is None


@pytest.mark.parametrize(
    "row", [{"token_ids": [1]}, {"token_ids": [1, 2], "loss_mask": [1]}, {"token_ids": [1], "loss_mask": [0]}]
)
def test_tokens_without_a_fitting_mask_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="loss_mask"):
        exact_sample(row)
