"""What the index keeps of a record: the columns of its row, and the words that a search finds. Works on the parsed JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Json = dict[str, Any]

COLUMNS = (
    "key TEXT", "domain TEXT", "task TEXT", "split TEXT", "attempt INTEGER", "greedy INTEGER", "tries INTEGER", "seed INTEGER",
    "status TEXT", "fault TEXT", "reason TEXT", "reward REAL", "score REAL", "partial REAL", "turns INTEGER", "malformed INTEGER",
    "tool_errors INTEGER", "tokens INTEGER", "seconds REAL", "failure TEXT",
)  # fmt: skip
MOST_WORDS = 200_000  # characters of a conversation that can be searched
MOST_FAILURE = 300


def index_row(record: Json) -> Json:
    """The columns of a record, in their order. Raises KeyError, TypeError or ValueError where it is none."""
    attempt, episode = record["attempt"], record["episode"]
    task, turns, grade = attempt["task"], episode.get("turns") or [], episode.get("grade")
    score, failure = record.get("score") or {}, episode.get("failure")
    greedy = bool(attempt.get("greedy"))
    reward = None if grade is None else float(grade["reward"])
    shaped = score.get("shaped")
    solved = reward is not None and reward >= 1 - 1e-6
    fault = str(failure["fault"]) if failure else "" if solved else "agent"
    spans = sum(int(turn["end"]) - int(turn["start"]) for turn in turns)
    said = sum(int((turn.get("usage") or {}).get("completion_tokens") or 0) for turn in turns)
    return {
        "key": f"{task['domain']}/{task['task_id']}#{'greedy' if greedy else attempt['index']}",
        "domain": str(task["domain"]),
        "task": str(task["task_id"]),
        "split": str(task["split"]),
        "attempt": int(attempt["index"]),
        "greedy": greedy,
        "tries": int(record.get("tries") or 1),
        "seed": str(attempt["seed"]),
        "status": str(episode["status"]),
        "fault": fault,
        "reason": str(episode["termination"]),
        "reward": reward,
        "score": reward if shaped is None else float(shaped),
        "partial": score.get("partial"),
        "turns": len(turns),
        "malformed": sum(turn.get("malformed") is not None for turn in turns),
        "tool_errors": sum(bool(message.get("error")) for message in episode.get("messages") or ()),
        "tokens": spans if episode.get("token_ids") else said,
        "seconds": episode.get("seconds"),
        "failure": str(failure.get("message") or failure.get("kind") or "")[:MOST_FAILURE] if failure else "",
    }


def searchable_text(record: Json) -> str:
    """The text of both sides, the calls with their arguments, thoughts and the failure: what a search looks through."""
    left, parts = MOST_WORDS, list[str]()
    for text in _texts(record["episode"]):
        parts.append(text[:left])
        left -= len(parts[-1])
        if left <= 0:
            break
    return "\n".join(parts).replace("\0", " ").encode("utf-8", "replace").decode()


def _texts(episode: Mapping[str, Any]) -> Iterator[str]:
    for message in episode.get("trajectory") or episode.get("messages") or ():
        if message.get("content"):
            yield str(message["content"])
        for call in message.get("tool_calls") or ():
            yield f"{call['name']} {json.dumps(call.get('arguments'), ensure_ascii=False)}"
    for turn in episode.get("turns") or ():
        for action in turn.get("actions") or ():
            if action.get("thought"):
                yield str(action["thought"])
    if failure := episode.get("failure"):
        yield f"{failure.get('kind')} {failure.get('message')}"
