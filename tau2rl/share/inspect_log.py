"""Inspect's `.eval` log of a run, written by inspect-ai itself (the extra `inspect`), so that `inspect view` opens it.

A sample is an attempt: `id` its task, `epoch` its number. Scores are tau2's reward and the share of its checks; FAILED attempts
are samples with an error and no score, as in Inspect. The whole log is in memory while it is written, as inspect-ai has it.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tau2rl.config.extras import refuse_command
from tau2rl.errors import UserError
from tau2rl.report.schema import SCHEMA
from tau2rl.runs.files import writing
from tau2rl.runs.reports import REPORT, read_report
from tau2rl.share.kept import KeptRun
from tau2rl.types import EpisodeRecord, Message, Status


def export(run: KeptRun, folder: Path) -> dict[Path, int]:
    """Write `NAME.eval`; the file with the number of its samples. Raises UserError where inspect-ai is not installed."""
    refuse_command("tau2rl export --to inspect")
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalResults,
        EvalScore,
        EvalSpec,
        EvalStats,
        write_eval_log,
    )
    from inspect_ai.viewer import ViewerConfig

    samples = [_sample(record, run) for record in run.records()]
    if not samples:
        raise UserError(f"`{run.path}` has no episodes to export")
    report = read_report(run.path / REPORT) if (run.path / REPORT).is_file() else {}
    created = _time(run.path / "config.json")
    shown = {
        name.replace("^", "_hat_"): EvalMetric(name=name, value=estimate["value"], metadata={"ci95": estimate.get("ci95")})
        for name, estimate in (report.get("overall") or {}).items()
        if estimate.get("value") is not None
    }
    scored = [sample for sample in samples if sample.scores]
    config = run.config
    log = EvalLog(
        status="success" if report and not report.get("incomplete") else "error",
        eval=EvalSpec(
            created=created, task=f"tau2_bench_{'_'.join(config.tasks.domains)}",
            task_id=run.digest, run_id=run.digest, eval_id=run.digest,
            dataset=EvalDataset(
                name=f"tau2-bench {config.tasks.split}", samples=len({sample.id for sample in samples}),
                sample_ids=list(dict.fromkeys(str(sample.id) for sample in samples)),
            ),
            model=run.model, model_roles=None, config=EvalConfig(epochs=config.attempts_per_task),
            metadata={
                "run": config.name, "digest": run.digest, "user_simulator": run.user, "protocol": config.chat.protocol,
                "benchmark": run.identity.get("bench"), "report_schema": SCHEMA,
            },
            viewer=ViewerConfig(trust_content=False),  # models wrote it: `inspect view` shows it as plain text
        ),
        results=EvalResults(
            total_samples=len(samples), completed_samples=len(scored),
            scores=[EvalScore(name="reward", scorer="tau2", scored_samples=len(scored), metrics=shown)],
        ),
        stats=EvalStats(started_at=created, completed_at=_time(run.path / REPORT)),
        samples=samples,
    )  # fmt: skip
    file = folder / f"{config.name.replace('/', '_')}.eval"
    with writing(file):
        folder.mkdir(parents=True, exist_ok=True)
        write_eval_log(log, str(file), format="eval")
    return {file: len(samples)}


def _time(file: Path) -> str:
    seconds = file.stat().st_mtime if file.exists() else 0.0
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _sample(record: EpisodeRecord, run: KeptRun) -> Any:
    from inspect_ai.log import EvalError, EvalSample
    from inspect_ai.model import ModelUsage
    from inspect_ai.scorer import Score

    episode, grade = record.episode, record.episode.grade
    failed = episode.status is Status.FAILED or grade is None
    scores = None
    if not failed and grade is not None:
        checks = {} if grade.checks is None else {kind: list(met) for kind, met in asdict(grade.checks).items() if met}
        scores = {"reward": Score(value=grade.reward, metadata={"checks": checks, "basis": list(grade.reward_basis)})}
        if record.score and record.score.partial is not None:
            scores["partial"] = Score(value=record.score.partial)
    messages = list(_messages(episode.messages, run.model))
    opened = next((i for i, message in enumerate(messages) if message.role == "user"), -1) + 1
    error = episode.failure
    used = [turn.usage for turn in episode.turns]
    tokens_in, tokens_out = sum(u.prompt_tokens for u in used), sum(u.completion_tokens for u in used)
    number = run.config.attempts_per_task if record.attempt.greedy else record.attempt.index
    return EvalSample(
        id=_text(record.attempt.task.key), epoch=1 + number,
        input=messages[:opened] or "", target="", messages=messages, scores=scores,
        metadata={"status": episode.status.value, "stop_reason": episode.stop_reason.value, "split": record.attempt.task.split,
                  "seed": record.attempt.seed, "greedy": record.attempt.greedy},
        model_usage={
            run.model: ModelUsage(input_tokens=tokens_in, output_tokens=tokens_out, total_tokens=tokens_in + tokens_out)
        },
        error=EvalError(message=_text(error.message), traceback="", traceback_ansi="") if error and failed else None,
        total_time=episode.seconds, uuid=run.id_of(record),
    )  # fmt: skip


def _messages(messages: Sequence[Message], model: str) -> Iterator[Any]:
    """Inspect's messages; results stand in the order of the calls, so the ids are made here."""
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageTool,
        ChatMessageUser,
        ContentReasoning,
        ContentText,
    )
    from inspect_ai.tool import ToolCall, ToolCallError

    waiting: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        text = _text(message.content)
        if message.role == "assistant":
            waiting = [(f"call_{number}_{i}", _text(call.name)) for i, call in enumerate(message.tool_calls)]
            calls = [
                ToolCall(id=id, function=name, arguments=call.arguments)
                for (id, name), call in zip(waiting, message.tool_calls, strict=True)
            ]
            thought = (
                [ContentReasoning(reasoning=_text(message.reasoning)), ContentText(text=text)] if message.reasoning else text
            )
            yield ChatMessageAssistant(content=thought, tool_calls=calls or None, model=model)
        elif message.role == "tool":
            id, name = waiting.pop(0) if waiting else (None, None)
            error = ToolCallError("unknown", text) if message.error else None
            yield ChatMessageTool(content=text, tool_call_id=id, function=name, error=error)
        else:
            yield (ChatMessageUser if message.role == "user" else ChatMessageSystem)(content=text)


def _text(text: str) -> str:
    """UTF-8: half of a surrogate pair becomes `?`."""
    return text.encode("utf-8", "replace").decode()
