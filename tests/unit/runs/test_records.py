"""Episodes as lines.

- a record comes back equal: tuples, enums, both kinds of action, floats to the last bit, nested arguments, any text
- a line is one line, whatever the text in it
- half a surrogate pair is replaced, not a crash
- a torn last line is no record; any other bad line is an error that names file and line
- a line from before a field was there reads with the field's default, and one with a field that is not known reads without it
- another schema is refused with a hint, even when the rest cannot be read
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tau2rl import types as t
from tau2rl.errors import UserError
from tau2rl.runs import records
from tau2rl.types import Attempt, CallTool, EpisodeRecord, Message, Say, Status, StopReason, TaskRef, Think

TASK = TaskRef(domain="retail", task_id="17", split="test")


def record(**changes: object) -> EpisodeRecord:
    call = CallTool(name="get_order", arguments={"id": "#W1", "deep": {"list": [1, 2.5, None, True, {"ü": "🙂"}]}, "big": 2**70})
    episode = t.Episode(
        task=TASK,
        seed=5,
        status=Status.COMPLETED,
        stop_reason=StopReason.USER_STOP,
        token_ids=(1, 2, 3, 151657),
        turns=(
            t.Turn(
                start=2,
                end=4,
                prompt_hash="00ff00ff00ff00ff",
                logprobs=(-0.1, -1e-17),
                finish_reason=t.FinishReason.STOP,
                actions=(Think(text="Hm."), Say(text="One\nmoment.\u2028"), call),
                usage=t.Usage(prompt_tokens=2, completion_tokens=2, cost_usd=0.1 + 0.2),
            ),
            t.Turn(
                start=4,
                end=4,
                prompt_hash="",
                logprobs=None,
                finish_reason=t.FinishReason.LENGTH,
                actions=(),
                malformed=t.MalformedKind.BAD_JSON,
            ),
        ),
        messages=(
            Message(role="user", content="línea\r\nzwei"),
            Message.of((call,)),
            Message(role="tool", content="", error=True),
        ),
        grade=t.Grade(reward=1.0, checks=t.Checks(db=(True,), nl=(False,)), reward_basis=("DB",)),
        env_time=t.EnvTime(seconds=2.5, user_seconds=2.0, cpu_seconds=0.01),
        worker_cpu_seconds=0.5,
        db_hashes=("ab", None),
        trajectory=({"role": "user", "turn_idx": 0, "tool_calls": None},),
    )
    values: dict[str, object] = {
        "schema": records.SCHEMA,
        "run": "default",
        "attempt": Attempt(task=TASK, index=1, seed=9),
        "tries": 2,
        "episode": episode,
        "score": t.Score(task=1.0, partial=1 / 3, shaped=None, components={"db": 1.0}),
    }
    return EpisodeRecord(**{**values, **changes})  # type: ignore[arg-type]


def failed() -> EpisodeRecord:
    failure = t.Failure(fault=t.Fault.USER, kind="UserSimulatorFailure", message="HTTP 500")
    episode = dataclasses.replace(record().episode, status=Status.FAILED, grade=None, failure=failure, turns=(), messages=())
    return record(episode=episode, score=None)


@pytest.mark.parametrize("original", [record(), failed()], ids=["completed", "failed"])
def test_a_record_comes_back_equal_and_of_the_same_types(original: EpisodeRecord) -> None:
    line = records.encode(original)
    back = records.decode(line)
    assert back == original
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert type(back.episode.token_ids) is tuple
    assert type(back.episode.status) is Status


def test_actions_come_back_as_what_they_were() -> None:
    actions = records.decode(records.encode(record())).episode.turns[0].actions
    assert [type(action) for action in actions] == [Think, Say, CallTool]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


log_probabilities = st.none() | st.lists(st.floats(allow_nan=False), max_size=4).map(tuple)


@settings(max_examples=60, deadline=None)
@given(text=st.text(), arguments=st.dictionaries(st.text(), json_values, max_size=3), logprobs=log_probabilities)
def test_any_text_arguments_and_floats_come_back(
    text: str, arguments: dict[str, Any], logprobs: tuple[float, ...] | None
) -> None:
    call = CallTool(name=text, arguments=arguments)
    turn = dataclasses.replace(record().episode.turns[0], actions=(Say(text=text), call), logprobs=logprobs)
    original = record(episode=dataclasses.replace(record().episode, turns=(turn,)))
    line = records.encode(original)
    assert line.count(b"\n") == 1
    assert records.decode(line) == original


def test_an_impossible_token_keeps_its_infinite_log_probability() -> None:
    turn = dataclasses.replace(record().episode.turns[0], logprobs=(-math.inf,))
    back = records.decode(records.encode(record(episode=dataclasses.replace(record().episode, turns=(turn,)))))
    assert back.episode.turns[0].logprobs == (-math.inf,)


def test_half_a_surrogate_pair_is_replaced() -> None:
    episode = dataclasses.replace(record().episode, messages=(Message(role="assistant", content="a\ud83db"),))
    back = records.decode(records.encode(record(episode=episode)))
    assert back.episode.messages[0].content == "a?b"


def test_a_missing_file_has_no_records(tmp_path: Path) -> None:
    assert list(records.read_records(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize("cut", [1, 2, 100])
def test_a_line_cut_at_the_end_is_no_record(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "episodes.jsonl"
    file.write_bytes(records.encode(record()) + records.encode(failed())[:-cut])
    assert list(records.read_records(file)) == [record()]


def test_a_bad_line_in_the_middle_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "episodes.jsonl"
    line = records.encode(record())
    file.write_bytes(line + line[:50] + b"\n" + line)
    with pytest.raises(UserError, match=r"episodes\.jsonl` line 2: not an episode record"):
        list(records.read_records(file))


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    values = json.loads(records.encode(record()))
    del values["episode"]["seed"]
    with pytest.raises(UserError, match=r"episode\.seed"):
        records.decode(json.dumps(values).encode())


def test_records_of_versions_that_measured_less_or_more_are_read() -> None:
    values = json.loads(records.encode(record()))
    for later in ("env_time", "worker_cpu_seconds"):
        del values["episode"][later]
    values["episode"]["turns"][0]["of_tomorrow"] = values["of_tomorrow"] = 1
    untimed = dataclasses.replace(record().episode, env_time=None, worker_cpu_seconds=0.0)
    assert records.decode(json.dumps(values).encode()) == record(episode=untimed)


@pytest.mark.parametrize("line", [b'{"schema": 3, "other": "layout"}\n', records.encode(record(schema=3))], ids=["other", "same"])
def test_another_schema_is_refused_with_a_hint(line: bytes) -> None:
    with pytest.raises(UserError, match="record of schema 3, this version reads schemas 1 and 2") as caught:
        records.decode(line)
    assert caught.value.hint


@pytest.mark.parametrize("line", [b"\n", b"[]\n", b"null\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n"])
def test_rubbish_is_an_error_of_ours(line: bytes) -> None:
    with pytest.raises(UserError, match="not an episode record"):
        records.decode(line)
