"""ATIF, the trajectory format of harbor: `trajectories.jsonl`, one whole document of `ATIF-v1.8` a line.

Steps are the messages that the agent saw and wrote; results of a turn's calls are its observation. What a telecom user does on
the device is not among them: only steps of the agent may have calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tau2rl
from tau2rl.env.domain import domain
from tau2rl.runs.files import replacing, writing
from tau2rl.share.kept import KeptRun, write_text
from tau2rl.types import Episode, EpisodeRecord, Message, Think, Turn

VERSION = "ATIF-v1.8"


def export(run: KeptRun, folder: Path) -> dict[Path, int]:
    """Write every episode that counts and has a conversation; the file with their number. Raises UserError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    file, count = folder / "trajectories.jsonl", 0
    with writing(file), replacing(file) as out:
        for record in run.records():
            if record.episode.messages:
                write_text(out, trajectory(run, record))
                out.write(b"\n")
                count += 1
    return {file: count}


def trajectory(run: KeptRun, record: EpisodeRecord) -> dict[str, Any]:
    """One episode as a document."""
    episode, loaded = record.episode, domain(record.attempt.task.domain)
    steps: list[dict[str, Any]] = [{"source": "system", "message": loaded.policy}]
    steps += _steps(episode)
    prompt = sum(turn.usage.prompt_tokens for turn in episode.turns)
    grade = episode.grade
    return {
        "schema_version": VERSION,
        "session_id": run.digest,
        "trajectory_id": run.id_of(record),
        "agent": {
            "name": "tau2rl",
            "version": tau2rl.__version__,
            "model_name": run.model,
            "tool_definitions": list(loaded.tools),
        },
        "steps": [{"step_id": number, **step} for number, step in enumerate(steps, start=1)],
        "final_metrics": {
            "total_prompt_tokens": prompt,
            "total_completion_tokens": sum(turn.usage.completion_tokens for turn in episode.turns),
            "total_cached_tokens": sum(turn.usage.cached_tokens for turn in episode.turns),
            "total_cost_usd": sum(turn.usage.cost_usd for turn in episode.turns) + episode.user_usage.cost_usd,
            "total_steps": len(steps),
        },
        "extra": {
            "benchmark": "tau2-bench",
            "task": record.attempt.key,
            "split": record.attempt.task.split,
            "user_simulator": run.user,
            "status": episode.status.value,
            "stop_reason": episode.stop_reason.value,
            "reward": None if grade is None else grade.reward,
        },
    }


def _steps(episode: Episode) -> Iterable[dict[str, Any]]:
    """The agent's and the user's messages; the n-th sampled message is the n-th turn that could be read."""
    turns = [turn for turn in episode.turns if turn.malformed is None]
    spoken = [message for message in episode.messages if message.role == "assistant"]
    waiting, number = len(spoken) - len(turns), 0  # the greeting, which nobody sampled
    steps: list[dict[str, Any]] = []
    for message in episode.messages:
        match message.role:
            case "tool":
                _observe(steps, message)
            case "assistant":
                waiting -= 1
                turn = turns[number] if waiting < 0 and number < len(turns) else None
                number += turn is not None
                steps.append(_agent(message, turn, len(steps)))
            case _:
                steps.append({"source": "user" if message.role == "user" else "system", "message": message.content})
    return steps


def _agent(message: Message, turn: Turn | None, at: int) -> dict[str, Any]:
    calls = [
        {"tool_call_id": f"call_{at}_{i}", "function_name": call.name, "arguments": call.arguments}
        for i, call in enumerate(message.tool_calls)
    ]
    thoughts = "\n".join(action.text for action in turn.actions if isinstance(action, Think)) if turn else ""
    step: dict[str, Any] = {"source": "agent", "message": message.content, **({"tool_calls": calls} if calls else {})}
    if turn is None:
        return {**step, "llm_call_count": 0}
    usage = turn.usage
    metrics: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "cost_usd": usage.cost_usd,
    }
    return {**step, **({"reasoning_content": thoughts} if thoughts else {}), "metrics": metrics, "llm_call_count": 1}


def _observe(steps: list[dict[str, Any]], message: Message) -> None:
    """Put a result beside the call that it answers: results stand in the order of the calls."""
    if not steps:
        return
    step = steps[-1]
    results = step.setdefault("observation", {"results": []})["results"]
    calls: list[Mapping[str, Any]] = step.get("tool_calls", [])
    source = {"source_call_id": calls[len(results)]["tool_call_id"]} if len(results) < len(calls) else {}
    results.append({**source, "content": message.content, **({"extra": {"error": True}} if message.error else {})})
