"""tau2's `results.json`: what `tau2 view`, `tau2 evaluate-trajs` and its submission check read, made of a run and read into one.

A file has one domain. tau2 knows no FAILED episode and no greedy one, so these are left out and counted. A conversation that our
limits cut off is `max_steps` there, one that left the chat protocol `agent_error`: tau2 gives both 0, as the run did. What ended
it is kept in `reward_info.info.tau2rl`, from where it is read back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tau2rl.env.domain import Domain, domain
from tau2rl.env.task_files import source_path
from tau2rl.env.tasks import gold_actions
from tau2rl.runs.files import replacing, writing
from tau2rl.share.kept import KeptRun, write_text
from tau2rl.types import Checks, Episode, EpisodeRecord, Status

MAX_ERRORS = 10  # tau2's own default, which its gym has
THEIRS = ("user_stop", "agent_stop", "max_steps", "too_many_errors", "agent_error", "user_error")


@dataclass(slots=True, kw_only=True)
class Exported:
    """What was written: `Exported(files={Path("out/retail.json"): 160}, left_out=Counter({"failed": 2}))`."""

    files: dict[Path, int] = field(default_factory=dict[Path, int])  # with the number of their episodes
    left_out: Counter[str] = field(default_factory=Counter[str])


def export(run: KeptRun, folder: Path) -> Exported:
    """Write `DOMAIN.json` for each domain of the run. Raises UserError."""
    done = Exported()
    domains: dict[str, set[str]] = {}
    for record in run.records():
        if reason := _left_out(record):
            done.left_out[reason] += 1
        else:
            domains.setdefault(record.attempt.task.domain, set()).add(record.attempt.task.task_id)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, ids in domains.items():
        file = folder / f"{name}.json"
        with writing(file), replacing(file) as out:
            done.files[file] = _write(out, run, domain(name), ids)
    return done


def _left_out(record: EpisodeRecord) -> str:
    """Why an episode has no place in tau2's file; "" for one that has."""
    if record.episode.status is Status.FAILED or record.episode.grade is None:
        return "failed"
    if record.attempt.greedy:
        return "greedy"
    return "" if record.episode.trajectory else "no trajectory"


def _write(out: BinaryIO, run: KeptRun, loaded: Domain, ids: Container[str]) -> int:
    named = run.config.tasks
    every = loaded.tasks(named.split, source_path(named.source) if named.source else "")
    tasks = {id: task for id, task in every.items() if id in ids}  # in tau2's order
    out.write(b'{"timestamp": null, "info": ')
    write_text(out, _info(run, loaded))
    out.write(b', "tasks": ')
    write_text(out, [task.model_dump(mode="json") for task in tasks.values()])
    out.write(b', "simulations": [')
    count = 0
    for record in run.records():
        if record.attempt.task.domain == loaded.name and not _left_out(record):
            out.write(b",\n" if count else b"\n")
            write_text(out, simulation(run, record, tasks[record.attempt.task.task_id]))
            count += 1
    out.write(b"\n]}\n")
    return count


def _info(run: KeptRun, loaded: Domain) -> dict[str, Any]:
    config, tau2 = run.config, run.identity.get("bench", {}).get("tau2", {})
    llm = config.user.kind == "llm"
    return {
        "git_commit": f"{tau2.get('distribution', 'tau2')} {tau2.get('version', '?')}",
        "num_trials": config.attempts_per_task,
        "max_steps": config.limits.max_steps,
        "max_errors": MAX_ERRORS,
        "user_info": {
            "implementation": "user_simulator" if llm else config.user.kind,
            "llm": config.user.model if llm else None,
            "llm_args": {"temperature": config.user.temperature} if llm else None,
        },
        "agent_info": {
            "implementation": f"tau2rl ({config.chat.protocol})",
            "llm": run.model,
            "llm_args": {"digest": run.digest, "thinking": config.chat.thinking},
        },
        "environment_info": {"domain_name": loaded.name, "policy": loaded.policy},
        "seed": config.seed,
    }


def simulation(run: KeptRun, record: EpisodeRecord, task: Any) -> dict[str, Any]:
    """One of tau2's `SimulationRun`s."""
    episode = record.episode
    messages = sorted(episode.trajectory, key=lambda message: str(message.get("timestamp") or ""))
    times = [str(message["timestamp"]) for message in messages if message.get("timestamp")] or [""]
    return {
        "id": run.id_of(record),
        "task_id": record.attempt.task.task_id,
        "timestamp": times[-1],
        "start_time": times[0],
        "end_time": times[-1],
        "duration": episode.seconds,
        "termination_reason": _reason(episode),
        "agent_cost": sum(turn.usage.cost_usd for turn in episode.turns),
        "user_cost": episode.user_usage.cost_usd,
        "reward_info": reward_info(episode, task),
        "messages": [{**message, "turn_idx": number} for number, message in enumerate(messages)],
        "trial": record.attempt.index,
        "seed": record.attempt.seed,
    }


def _reason(episode: Episode) -> str:
    """What ended it, in tau2's words."""
    if episode.stop_reason.value in THEIRS:
        return episode.stop_reason.value
    return "agent_error" if episode.status is Status.MALFORMED else "max_steps"


def reward_info(episode: Episode, task: Any) -> dict[str, Any]:
    """tau2's `RewardInfo` of the verdicts that were kept; a kind whose reference has another length today is left out."""
    grade = episode.grade
    assert grade is not None
    criteria, checks = task.evaluation_criteria, grade.checks or Checks()
    told = f"as the run recorded it: {episode.status.value}, {episode.stop_reason.value}"
    db = checks.db[0] if checks.db else None
    asserted = (criteria.env_assertions if criteria else None) or ()
    wanted = {
        "action_checks": ("action", "action_match", "action_reward", gold_actions(task), checks.action),
        "env_assertions": ("env_assertion", "met", "reward", asserted, checks.env_assertion),
    }
    info: dict[str, Any] = {
        "reward": grade.reward,
        "db_check": None if db is None else {"db_match": db, "db_reward": float(db)},
        "communicate_checks": [
            {"info": str(text), "met": met, "justification": told}
            for text, met in _beside((criteria.communicate_info if criteria else None) or (), checks.communicate)
        ],
        "reward_basis": list(grade.reward_basis) or None,
        "reward_breakdown": None,
        "info": {"tau2rl": {"status": episode.status.value, "stop_reason": episode.stop_reason.value}},
    }
    for name, (what, met, reward, reference, verdicts) in wanted.items():
        info[name] = [
            {what: each.model_dump(mode="json"), met: verdict, reward: float(verdict)}
            for each, verdict in _beside(reference, verdicts)
        ]
    return (
        info if grade.checks is not None else {**info, "communicate_checks": None, "action_checks": None, "env_assertions": None}
    )


def _beside(reference: Sequence[Any], verdicts: Sequence[bool]) -> Iterator[tuple[Any, bool]]:
    return zip(reference, verdicts, strict=True) if len(reference) == len(verdicts) else iter(())
