"""Results of other programs as a run folder: tau2's `results.json`, and the pass@k JSON of jbarnes850/Tau2-RL-Pipeline.

The folder is an evaluation like any other, for `report`, `compare`, `show`, `view` and `export`. What a file does not say stays
unsaid: no tokens, no floors where its tasks are not those of the installed tau2, no conversation in a pass@k JSON. What the agent
is not to blame for (an aborted call, a skipped sample) is FAILED and never a 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tau2rl.chat.content import NotText, read_content
from tau2rl.config import EvalConfig, build
from tau2rl.enums import Fault, FinishReason, Status, StopReason, UserSignal
from tau2rl.env.domain import Domain, domain, known_domains
from tau2rl.env.tasks import describe
from tau2rl.errors import EnvironmentFailure, UserError
from tau2rl.recipes.play import floors
from tau2rl.report.report import build_report
from tau2rl.reward.presets import spec_from
from tau2rl.reward.score import grade_from_tau2, score_episode
from tau2rl.rollouts.runner import plan_attempts
from tau2rl.runs.claim import claimed
from tau2rl.runs.files import read_json, section
from tau2rl.runs.folder import RunFolder, run_path
from tau2rl.runs.provenance import environment, file_hash
from tau2rl.runs.records import SCHEMA
from tau2rl.types import Actions, Attempt, CallTool, Episode, EpisodeRecord, Failure, Grade, Message, Say, TaskRef, Turn, Usage

STOPPED = UserSignal.STOP.value  # what tau2's gym writes for an agent whose conversation was closed: nobody said it
ENDS = {  # of tau2, by how much they say about the agent
    "user_stop": Status.COMPLETED, "agent_stop": Status.COMPLETED, "too_many_errors": Status.COMPLETED,
    "max_steps": Status.TRUNCATED, "timeout": Status.TRUNCATED, "judge_stop": Status.TRUNCATED, "agent_error": Status.MALFORMED,
}  # fmt: skip
PASS_AT_K = {  # its `status` -> ours, and what ended it
    "completed": (Status.COMPLETED, StopReason.USER_STOP), "truncated": (Status.TRUNCATED, StopReason.MAX_STEPS),
    "parse_error": (Status.MALFORMED, StopReason.MALFORMED), "empty_generation": (Status.MALFORMED, StopReason.MALFORMED),
    "aborted": (Status.FAILED, StopReason.FAILED),
}  # fmt: skip


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Attempt(_Lenient):
    reward: float
    status: str
    steps: int = 0
    error: str | None = None
    reward_info: dict[str, Any] | None = None


class _Task(_Lenient):
    domain: str
    task_split: str
    task_id: str
    attempts: list[_Attempt]


class _PassAtK(_Lenient):
    hf_checkpoint: str
    k: int = Field(ge=1)
    results: list[_Task]


class _Simulation(_Lenient):
    id: str
    task_id: str
    duration: float = 0.0
    termination_reason: str
    reward_info: dict[str, Any] | None = None
    messages: list[dict[str, Any]] = []
    trial: int | None = None
    seed: int | None = None
    skipped: bool = False
    user_cost: float | None = None


class _Who(_Lenient):
    implementation: str
    llm: str | None = None
    llm_args: dict[str, Any] | None = None


class _EnvironmentInfo(_Lenient):
    domain_name: str


class _Info(_Lenient):
    git_commit: str
    num_trials: int = Field(ge=1)
    max_steps: int = Field(ge=1)
    user_info: _Who
    agent_info: _Who
    environment_info: _EnvironmentInfo
    seed: int | None = None


class _Results(_Lenient):
    info: _Info
    tasks: list[dict[str, Any]]
    simulations: list[_Simulation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """What a file holds, whatever its layout."""

    layout: str
    values: dict[str, Any]  # settings of the evaluation
    agent: str
    code: str  # of which version of tau2 it was made, as the file says
    episodes: tuple[tuple[Attempt, Episode], ...]
    other_tasks: tuple[str, ...] = ()  # whose definition is not that of the installed tau2


def read_foreign(file: Path, *, split: str | None) -> Foreign:
    """Read a file of either layout. Raises UserError."""
    values = read_json(file)
    try:
        if {"info", "simulations"} <= values.keys():
            return _of_tau2(_Results.model_validate(values), split)
        if {"hf_checkpoint", "results"} <= values.keys():
            return _of_pass_at_k(_PassAtK.model_validate(values))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"`{file}` cannot be read: `{where}`: {first['msg']}", hint="it is of another version, or damaged"
        ) from None
    except EnvironmentFailure as error:
        raise UserError(f"`{file}` cannot be read: {error}") from None
    raise UserError(
        f"`{file}` is of no layout that is known here", hint="tau2's `results.json`, or a pass@k JSON of Tau2-RL-Pipeline"
    )


def into_run(file: Path, foreign: Foreign, *, name: str, output: Path | None) -> tuple[Path, dict[str, Any]]:
    """Make the run folder; its path and report. Raises UserError, as for a folder that holds a run already."""
    config = build(EvalConfig, {**foreign.values, "name": name, **({"output": str(output)} if output else {})}, stored=True)
    target = run_path(config)
    tasks = list(dict.fromkeys(attempt.task for attempt, _ in foreign.episodes))
    known = not foreign.other_tasks
    bench = {
        "tau2": {"distribution": "imported", "version": foreign.code},
        "data": {each: domain(each).hashes() for each in config.tasks.domains} if known else None,
        "user": {"kind": config.user.kind, "model": config.user.model, "temperature": config.user.temperature},
        "judge": None,
    }
    origin = {"layout": foreign.layout, "sha256": file_hash(file)}
    recorded = {"imported_from": str(file), "other_tasks": len(foreign.other_tasks)}
    stands_on = environment(config, bench, {"agent": foreign.agent, "imported": origin}, recorded=recorded)
    spec = spec_from(config.reward, max_turns=config.limits.max_turns, domains=config.tasks.domains)
    with claimed(target, config, resume=False) as claim, RunFolder.open(claim.path) as folder:
        folder.write_environment(stands_on)
        for attempt, episode in foreign.episodes:
            folder.append(
                EpisodeRecord(
                    schema=SCHEMA, run=name, attempt=attempt, tries=1, episode=episode, score=score_episode(episode, spec)
                )
            )
        report = build_report(
            (*folder.records(), *folder.failed_records()),
            planned=plan_attempts(tasks, num_samples=config.rollout.num_samples, seed=config.seed),
            floors=floors(tasks) if known else {},
            digest=str(stands_on["digest"]),
            tasks_with_writes={task.key for task in tasks if describe(task).changes_state} if known else None,
        )
        report |= {"cost": None, "imported_from": {"file": str(file), **origin, "other_tasks": len(foreign.other_tasks)}}
        folder.write_report(report)
    return target, report


def _of_tau2(results: _Results, split: str | None) -> Foreign:
    info, name = results.info, results.info.environment_info.domain_name
    loaded = _domain(name)
    ids = list(dict.fromkeys(simulation.task_id for simulation in results.simulations))
    split = _split(loaded, ids, split)
    given = {str(task.get("id")): task.get("evaluation_criteria") for task in results.tasks}
    other = tuple(i for i in ids if _criteria(loaded, split, i) != given.get(i))
    trials: dict[str, int] = {}
    episodes: list[tuple[Attempt, Episode]] = []
    for simulation in results.simulations:
        index = simulation.trial if simulation.trial is not None else trials.get(simulation.task_id, 0)
        trials[simulation.task_id] = index + 1
        ref = TaskRef(domain=name, task_id=simulation.task_id, split=split)
        attempt = Attempt(task=ref, index=index, seed=simulation.seed or 0)
        episodes.append((attempt, _episode(ref, simulation)))
    user = info.user_info
    return Foreign(
        layout="tau2 results",
        values=_settings(
            domains=[name], split=split, ids=ids, trials=info.num_trials, seed=info.seed, max_steps=info.max_steps,
            model=info.agent_info.llm or info.agent_info.implementation,
            user=user.llm or "", temperature=(user.llm_args or {}).get("temperature"),
        ),
        agent=f"{info.agent_info.implementation}, {info.agent_info.llm or 'no model'}",
        code=info.git_commit,
        episodes=tuple(episodes),
        other_tasks=other,
    )  # fmt: skip


def _of_pass_at_k(values: _PassAtK) -> Foreign:
    episodes: list[tuple[Attempt, Episode]] = []
    splits = {task.task_split for task in values.results}
    if len(splits) != 1:
        raise UserError(f"the file has tasks of {len(splits)} splits", hint="one evaluation has one split")
    for task in values.results:
        _split(_domain(task.domain), [task.task_id], task.task_split)
        ref = TaskRef(domain=task.domain, task_id=task.task_id, split=task.task_split)
        for index, one in enumerate(task.attempts):
            status, reason = PASS_AT_K.get(one.status, (Status.FAILED, StopReason.FAILED))
            grade = None if status is Status.FAILED else _grade(one.reward_info, one.reward)
            failure = Failure(fault=Fault.INFRA, kind="Imported", message=one.error or one.status) if grade is None else None
            episode = _bare(ref, status=status, reason=reason, grade=grade, failure=failure)
            episodes.append((Attempt(task=ref, index=index, seed=0), episode))
    domains = list(dict.fromkeys(task.domain for task in values.results))
    ids = [f"{task.domain}/{task.task_id}" for task in values.results]
    return Foreign(
        layout="Tau2-RL-Pipeline pass@k",
        values=_settings(
            domains=domains, split=splits.pop(), ids=ids, trials=values.k, model=values.hf_checkpoint, user="unknown"
        ),
        agent=values.hf_checkpoint,
        code="not said",
        episodes=tuple(episodes),
    )


def _settings(
    *, domains: Sequence[str], split: str, ids: Sequence[str], trials: int, model: str, user: str,
    seed: int | None = None, max_steps: int = 100, temperature: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """An evaluation's settings; what a file does not say has the default, which nothing depends on here."""
    played_by: dict[str, Any] = {"kind": "llm", "model": user} if user else {"kind": "scripted"}
    if user and isinstance(temperature, (int, float)) and not isinstance(temperature, bool):
        played_by["temperature"] = temperature
    return {
        "stage": "eval",
        **({} if seed is None else {"seed": seed}),
        "tasks": {"domains": list(domains), "split": split, "ids": list(ids)},
        "user": played_by,
        "chat": {"protocol": "transcript"},
        "policy": {"kind": "api", "model": model},
        "limits": {"max_steps": max_steps},
        "rollout": {"num_samples": trials},
    }


def _domain(name: str) -> Domain:
    if name not in known_domains():
        raise UserError(f"the file is of the domain `{name}`", hint=f"known here: {', '.join(known_domains())}")
    return domain(name)


def _split(loaded: Domain, ids: Iterable[str], asked: str | None) -> str:
    """The split that was asked for, or the one with the fewest tasks that has all these. Raises UserError."""
    wanted = set(ids)
    splits = loaded.splits() if asked is None else [asked]
    having = [name for name in splits if wanted <= set(loaded.tasks(name))]
    if not having:
        splits_tried = f"split `{asked}`" if asked else "any split"
        raise UserError(
            f"not all {len(wanted)} tasks of the file are in {splits_tried} of `{loaded.name}`",
            hint="`tau2rl tasks list` shows those of the installed tau2; `--task-split` names a split",
        )
    return min(having, key=lambda name: len(loaded.tasks(name)))


def _criteria(loaded: Domain, split: str, id: str) -> Any:
    criteria = loaded.tasks(split)[id].evaluation_criteria
    return None if criteria is None else json.loads(criteria.model_dump_json())


def _episode(ref: TaskRef, simulation: _Simulation) -> Episode:
    """An episode of tau2's simulation; what ended it is read back where an export of ours kept it."""
    info = simulation.reward_info or {}
    ours = section(info, "info", "tau2rl")
    status = ENDS.get(simulation.termination_reason, Status.FAILED)
    if simulation.skipped or (simulation.reward_info is None and status is not Status.FAILED):
        status = Status.FAILED
    try:
        reason = StopReason(ours.get("stop_reason", simulation.termination_reason))
        status = Status(ours.get("status", status))
    except ValueError:
        reason, status = StopReason.FAILED, Status.FAILED
    if status is Status.FAILED:
        fault = Fault.USER if simulation.termination_reason == "user_error" else Fault.INFRA
        told = "skipped" if simulation.skipped else f"{simulation.termination_reason}, not graded"
        failure, grade = Failure(fault=fault, kind="Imported", message=told), None
    else:
        failure, grade = None, _grade(info, info.get("reward"))
    messages = _flat(simulation.messages)
    return _bare(
        ref, status=status, reason=reason, grade=grade, failure=failure, seconds=simulation.duration,
        messages=tuple(_seen_by_agent(messages)), turns=tuple(_turns(messages)), trajectory=tuple(messages),
        user_usage=Usage(cost_usd=simulation.user_cost or 0.0), seed=simulation.seed or 0,
    )  # fmt: skip


def _bare(
    ref: TaskRef, *, status: Status, reason: StopReason, grade: Grade | None, failure: Failure | None, **more: Any
) -> Episode:
    given: dict[str, Any] = {"seed": 0, "token_ids": (), "turns": (), "messages": (), **more}
    return Episode(task=ref, status=status, stop_reason=reason, grade=grade, failure=failure, **given)


def _grade(info: Mapping[str, Any] | None, reward: Any) -> Grade:
    return grade_from_tau2({**(info or {}), "reward": reward})


def _flat(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """tau2's messages in order, without empty fields, the results of one turn one by one."""
    out: list[dict[str, Any]] = []
    for message in messages:
        parts = message.get("tool_messages")
        out += parts if isinstance(parts, list) else [message]
    return [
        {key: value for key, value in _in_text(message).items() if value is not None and key not in ("turn_idx", "raw_data")}
        for message in out
    ]


def _in_text(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the text of content that comes in parts. Raises EnvironmentFailure."""
    if not isinstance(message.get("content"), list):
        return message
    try:
        return {**message, "content": read_content(message).text}
    except NotText as error:
        raise EnvironmentFailure(f"a message that has {error}") from None


def _seen_by_agent(messages: Iterable[Mapping[str, Any]]) -> Iterable[Message]:
    for message in messages:
        role = message.get("role")
        device = role == "user" and message.get("tool_calls")  # on the user's own side
        if (
            role == "system"
            or device
            or (role == "tool" and message.get("requestor") == "user")
            or message.get("content") == STOPPED
        ):
            continue
        yield Message(
            role=_role(role),
            content=str(message.get("content") or ""),
            tool_calls=_calls(message),
            error=bool(message.get("error")),
        )


def _role(role: Any) -> Any:
    if role not in ("user", "assistant", "tool"):
        raise EnvironmentFailure(f"a message of the role {role!r:.50}")
    return role


def _calls(message: Mapping[str, Any]) -> tuple[CallTool, ...]:
    return tuple(
        CallTool(name=str(call["name"]), arguments=dict(call.get("arguments") or {})) for call in message.get("tool_calls") or ()
    )


def _turns(messages: Sequence[Mapping[str, Any]]) -> Iterable[Turn]:
    """The agent's turns: its messages but for the greeting, which nobody sampled."""
    first = True
    for message in messages:
        mine = message.get("role") == "assistant"
        greeting, first = mine and first and not message.get("tool_calls"), False
        if not mine or greeting or message.get("content") == STOPPED:
            continue
        text = str(message.get("content") or "")
        actions: Actions = (*((Say(text=text),) if text else ()), *_calls(message))
        used = {key: int(section(message, "usage").get(key) or 0) for key in ("prompt_tokens", "completion_tokens")}
        yield Turn(
            start=0, end=0, prompt_hash="", logprobs=None, finish_reason=FinishReason.STOP, actions=actions,
            usage=Usage(**used, cost_usd=float(message.get("cost") or 0.0)),
        )  # fmt: skip
