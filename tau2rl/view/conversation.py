"""One episode as people read it: both sides in order, checks beside what was expected, and its tokens. Values for JSON.

Every text passes `visible`: what would steer a terminal or turn the direction of text is written out; what is very long is cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tau2rl.chat.tokenizers import Tokenizer
from tau2rl.errors import UserError
from tau2rl.hashing import prefix_hash
from tau2rl.runs.records import TurnLogprobs
from tau2rl.terminal import visible
from tau2rl.types import Episode, EpisodeRecord, Message, TaskRef, Think, Turn

Json = dict[str, Any]
BASIS = {"action": "ACTION", "communicate": "COMMUNICATE", "env_assertion": "ENV_ASSERTION", "db": "DB", "nl": "NL_ASSERTION"}


def conversation_view(record: EpisodeRecord) -> Json:
    """The head of an episode, its messages of both sides as `items`, and its checks beside the reference."""
    episode = record.episode
    grade = episode.grade
    return {
        "key": visible(record.attempt.key), "domain": record.attempt.task.domain, "task": visible(record.attempt.task.task_id),
        "split": record.attempt.task.split, "attempt": record.attempt.index, "greedy": record.attempt.greedy,
        "seed": str(record.attempt.seed), "tries": record.tries, "status": episode.status.value,
        "reason": episode.stop_reason.value, "fault": None if episode.fault is None else episode.fault.value,
        "seconds": episode.seconds, "turns": len(episode.turns), "num_tokens": len(episode.token_ids),
        "sampled": sum(turn.end - turn.start for turn in episode.turns),
        "reward": None if grade is None else grade.reward,
        "basis": [] if grade is None else list(grade.reward_basis),
        "score": None if record.score is None else {"shaped": record.score.shaped, "partial": record.score.partial,
                                                    "components": record.score.components},
        "failure": None if episode.failure is None else {
            "fault": episode.failure.fault.value, "kind": episode.failure.kind, "message": visible(episode.failure.message)},
        "items": list(items(episode)),
        "checks": grade_checks(record),
    }  # fmt: skip


def items(episode: Episode) -> Iterator[Json]:
    """The conversation in order, with the turns that the chat protocol could not read where they stood.

    `who`: `agent`, `user`, `result` of a call, `malformed`. `side` of calls and results: who made the call.
    """
    messages = _messages(episode)
    readable = [(number, turn) for number, turn in enumerate(episode.turns) if turn.malformed is None]
    spoken = sum(message["who"] == "agent" for message in messages)
    before = max(0, spoken - len(readable))  # the greeting, which nobody sampled
    at = 0
    for message in messages:
        if message["who"] == "agent":
            if before:
                before -= 1
            else:
                while at < len(episode.turns) and episode.turns[at].malformed is not None:
                    yield _malformed(at, episode.turns[at])
                    at += 1
                if at < len(episode.turns):
                    message |= _of_turn(at, episode.turns[at])
                    at += 1
        yield message
    for number in range(at, len(episode.turns)):
        turn = episode.turns[number]
        if turn.malformed is not None:
            yield _malformed(number, turn)
        else:
            yield _message(Message.of(turn.actions)) | _of_turn(number, turn)


def grade_checks(record: EpisodeRecord) -> list[Json]:
    """tau2's checks, each with what was expected: `{"kind", "passed", "counts", "expected", "side"}`.

    `counts`: whether the reward depends on this kind. What is expected is None where tau2 is not installed, or has another task.
    """
    grade = record.episode.grade
    if grade is None or grade.checks is None:
        return []
    expected = reference_path(record.attempt.task)
    out: list[Json] = []
    for kind, basis in BASIS.items():
        verdicts = getattr(grade.checks, kind) or ()
        wanted: Sequence[Json] = expected.get(kind, [])
        known = len(wanted) == len(verdicts)
        for number, passed in enumerate(verdicts):
            beside = wanted[number] if known else {"expected": None, "side": None}
            out.append({"kind": kind, "passed": passed, "counts": basis in grade.reward_basis, **beside})
    return out


def reference_path(task: TaskRef) -> dict[str, list[Json]]:
    """What tau2 checks of a task, by kind; {} where that is not known here."""
    try:
        from tau2rl.env.domain import domain
        from tau2rl.env.tasks import gold_actions

        loaded = domain(task.domain).task(task)
    except (UserError, ImportError, KeyError, ValueError):
        return {}
    criteria = loaded.evaluation_criteria
    if criteria is None:
        return {}
    actions = [
        {
            "expected": visible(call_words(action.name, action.arguments)),
            "side": "user" if action.requestor == "user" else "agent",
        }
        for action in gold_actions(loaded)
    ]
    assertions = [
        {
            "expected": visible(call_words(each.func_name, each.arguments)) + ("" if each.assert_value else " is false"),
            "side": "user" if each.env_type == "user" else "agent",
        }
        for each in criteria.env_assertions or ()
    ]
    said = [{"expected": visible(str(text)), "side": "agent"} for text in criteria.communicate_info or ()]
    judged = [{"expected": visible(str(text)), "side": "agent"} for text in criteria.nl_assertions or ()]
    database = [{"expected": "the database as the reference path leaves it", "side": None}]
    return {"action": actions, "communicate": said, "env_assertion": assertions, "db": database, "nl": judged}


def call_words(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as people write it.

    >>> call_words("get_user", {"user_id": "u1"})
    'get_user(user_id="u1")'
    """
    return f"{name}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in arguments.items())})"


def tokens(
    episode: Episode, tokenizer: Tokenizer | None, advantages: Sequence[float] | None, trainer: TurnLogprobs | None = None
) -> Json:
    """The tokens as runs of one mask: `{"spans": [{"turn", "mask", "ids", "texts", ...}], "reason"}`.

    A sampled span has its `logprobs`, those of the `trainer`, and its `advantage`; `texts` is None without a tokenizer. What was
    put in to close a thought has the mask 0. advantages: one value, or [num_turns]. trainer: None where it is not known.
    `reason`: why some turns are missing (the protocol rewrote what was sampled).
    """
    ids, spans, at, lost = episode.token_ids, list[Json](), 0, 0
    for number, turn in enumerate(episode.turns):
        if turn.start < at or turn.end > len(ids) or prefix_hash(ids[: turn.start]) != turn.prompt_hash:
            lost += 1
            continue
        spans.append(_given(ids[at : turn.start], tokenizer))
        known = {"logprobs": turn.logprobs, "trainer": trainer[number] if trainer and number < len(trainer) else None}
        a, b = turn.forced or (turn.end, turn.end)
        for start, end in ((turn.start, a), (a, b), (b, turn.end)):
            if (start, end) == turn.forced:
                spans.append(_given(ids[start:end], tokenizer))
                continue
            values = {name: _finite(each, start - turn.start, end - turn.start) for name, each in known.items()}
            spans.append(
                _span(ids[start:end], tokenizer, turn=number, advantage=_of_turn_advantage(advantages, number), **values)
            )
        at = turn.end
    spans.append(_given(ids[at:], tokenizer))
    reason = ""
    if not ids:
        reason = "this policy exchanges messages: the record has no tokens"
    elif lost:
        reason = f"{lost} turns were sampled behind another prompt than the last one, whose tokens are shown"
    return {"spans": [span for span in spans if span["ids"]], "reason": reason, "decoded": tokenizer is not None}


def first_difference(a: Sequence[Json], b: Sequence[Json]) -> int | None:
    """The number of the first item that is not the same in both conversations; None where they are the same.

    >>> first_difference([{"who": "user", "text": "Hi"}], [{"who": "user", "text": "Hi"}, {"who": "agent", "text": "Yes?"}])
    1
    """
    for number, (left, right) in enumerate(zip(a, b, strict=False)):
        if any(left.get(key) != right.get(key) for key in ("who", "side", "text", "calls")):
            return number
    return None if len(a) == len(b) else min(len(a), len(b))


def _messages(episode: Episode) -> list[Json]:
    if not episode.trajectory:
        return [_message(message) for message in episode.messages]
    return [_of_tau2(message) for message in _flat(episode.trajectory)]


def _flat(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        if isinstance(message.get("tool_messages"), list):  # tau2 puts the results of one turn together
            yield from message["tool_messages"]
        else:
            yield message


def _of_tau2(message: Mapping[str, Any]) -> Json:
    role = str(message.get("role"))
    side = "user" if (message.get("requestor") or role) == "user" else "agent"
    calls = [_call(str(call["name"]), call.get("arguments") or {}) for call in message.get("tool_calls") or ()]
    who = {"tool": "result", "assistant": "agent"}.get(role, "user")
    return {"who": who, "side": side, "text": visible(str(message.get("content") or "")), "calls": calls,
            "error": bool(message.get("error"))}  # fmt: skip


def _message(message: Message) -> Json:
    who = {"tool": "result", "assistant": "agent"}.get(message.role, "user")
    calls = [_call(call.name, call.arguments) for call in message.tool_calls]
    return {"who": who, "side": "user" if who == "user" else "agent", "text": visible(message.content), "calls": calls,
            "error": message.error}  # fmt: skip


def _call(name: str, arguments: Any) -> Json:
    return {"name": visible(name, 200), "arguments": visible(json.dumps(arguments, ensure_ascii=False, indent=1))}


def _of_turn(number: int, turn: Turn) -> Json:
    thoughts = "\n".join(action.text for action in turn.actions if isinstance(action, Think))
    return {"turn": number, "thought": visible(thoughts), "seconds": turn.seconds, "sampled": turn.end - turn.start,
            "finish": turn.finish_reason.value}  # fmt: skip


def _malformed(number: int, turn: Turn) -> Json:
    kind = "" if turn.malformed is None else turn.malformed.value
    return {"who": "malformed", "side": "agent", "text": kind, "calls": [], "error": True} | _of_turn(number, turn)


def _of_turn_advantage(advantages: Sequence[float] | None, number: int) -> float | None:
    if advantages is None:
        return None
    return advantages[0] if len(advantages) == 1 else advantages[number] if number < len(advantages) else None


def _given(ids: Sequence[int], tokenizer: Tokenizer | None) -> Json:
    """What was not sampled."""
    return _span(ids, tokenizer, turn=None, logprobs=None, trainer=None, advantage=None)


def _span(ids: Sequence[int], tokenizer: Tokenizer | None, *, turn: int | None, **values: Any) -> Json:
    texts = None if tokenizer is None else [visible(tokenizer.decode([i])) for i in ids]
    return {"turn": turn, "mask": int(turn is not None), "ids": list(ids), "texts": texts, **values}


def _finite(values: Sequence[float | None] | None, start: int, end: int) -> list[float | None] | None:
    """A part of them, for JSON."""
    return None if values is None else [v if v is not None and abs(v) < 1e30 else None for v in values[start:end]]
