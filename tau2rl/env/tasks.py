"""Tasks: which ones a config names, what each asks for, which are defective, and what keeps test tasks out of training."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tau2rl.config import GrpoConfig, TasksConfig
from tau2rl.config.reading import IN_QUOTES
from tau2rl.data.task_profile import Profile, profile_for
from tau2rl.env import synth
from tau2rl.env.domain import SELECT, domain
from tau2rl.env.scripted_user import opening_words
from tau2rl.env.task_files import source_path, task_file
from tau2rl.errors import UserError
from tau2rl.types import Actions, CallTool, Episode, Say, TaskRef

ENTITY_PATTERNS = {
    "user": r"\b[a-z]+_[a-z]+_\d{3,5}\b",
    "order": r"#W\d{7}\b",
    "reservation": r"\b(?!HAT\d{3}\b)(?=[A-Z0-9]*\d)(?=[A-Z0-9]*[A-Z])[A-Z0-9]{6}\b",
    "customer": r"\bC\d{4}\b",
    "line": r"\bL\d{4}\b",
    "task": r"\btask_\d+\b",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One task in a listing: `TaskRow(ref=..., reads=3, writes=1, user_actions=0, basis=("DB", "COMMUNICATE"), ...)`."""

    ref: TaskRef
    reads: int  # agent-side reference actions by kind of tool
    writes: int
    generic: int
    user_actions: int  # reference actions that the user performs
    communicate: int  # pieces of information that must be said
    basis: tuple[str, ...]  # tau2's reward basis
    quarantined: str  # the reason, or ""
    purpose: str

    @property
    def changes_state(self) -> bool:
        """Whether the reference path writes anything, on either side."""
        return self.writes + self.user_actions > 0


def select(config: TasksConfig) -> list[TaskRef]:
    """The tasks that a config names, domain by domain, in tau2's order. Raises UserError."""
    chosen: list[TaskRef] = []
    wanted, known = set(config.ids), set[str]()
    source = source_path(config.source) if config.source else ""
    for name in dict.fromkeys(config.domains):
        ids = domain(name).tasks(config.split, source)
        refs = [TaskRef(domain=name, task_id=id, split=config.split, source=source) for id in ids]
        if wanted:
            refs = [r for r in refs if r.key in wanted or r.task_id in wanted]
            known |= {name for r in refs for name in (r.key, r.task_id)}
        if config.exclude_quarantined:
            refs = [r for r in refs if not quarantined(r)]
        chosen += refs[config.skip :][: config.limit]
    if missing := wanted - known:
        hint = "`tau2rl tasks list` shows them"
        if any(re.match(r"\[(\[|\w+/)", name) for name in missing):  # a list in brackets that could not be read as one
            hint += f"\n{IN_QUOTES}"
        raise UserError(f"no such tasks in split `{config.split}`: {', '.join(sorted(missing))}", hint=hint)
    if not chosen:
        raise UserError(
            "no tasks are left to run",
            hint="look at tasks.domains, tasks.split, tasks.ids, tasks.skip, tasks.exclude_quarantined",
        )
    return chosen


def list_tasks(config: TasksConfig) -> list[TaskRow]:
    """A row a task. Raises UserError."""
    return [describe(ref) for ref in select(config)]


def describe(ref: TaskRef) -> TaskRow:
    """What the task's definition says."""
    loaded = domain(ref.domain)
    task = loaded.task(ref)
    actions = gold_actions(task)
    kinds = Counter(loaded.tool_types.get(a.name, "generic") for a in actions if a.requestor == "assistant")
    criteria = task.evaluation_criteria
    return TaskRow(
        ref=ref,
        reads=kinds["read"],
        writes=kinds["write"],
        generic=kinds["generic"] + kinds["think"],
        user_actions=sum(a.requestor == "user" for a in actions),
        communicate=len((criteria.communicate_info if criteria else None) or ()),
        basis=tuple(str(b.value) for b in criteria.reward_basis) if criteria else (),
        quarantined=quarantined(ref),
        purpose=((task.description.purpose if task.description else "") or "").strip(),
    )


def kind_of(ref: TaskRef) -> str:
    """What sort of task it is, for limits and reports.

    A synthesised task: its first request, and how many follow (`create_ask+1`). Telecom: the intent that its id begins with.
    Others: the tools on the reference path that change something, "read only" where there is none.
    """
    if _is_synthesised(ref):
        first, *more = synth.kinds_of(ref.task_id)
        return f"{first}+{len(more)}" if more else first
    if family := re.match(r"\[([a-z_]+)\]", ref.task_id):
        return family[1]
    loaded = domain(ref.domain)
    names = {a.name for a in gold_actions(loaded.task(ref)) if loaded.tool_types.get(a.name) == "write" or a.requestor == "user"}
    return "+".join(sorted(names)) or "read only"


def _is_synthesised(ref: TaskRef) -> bool:
    """Whether it is one of mock's own made tasks (`env/synth.py`), which are named by their splits."""
    return not ref.source and synth.is_synth(ref.split)


def quarantined(ref: TaskRef) -> str:
    """The known defect of one of tau2's own tasks, or ""."""
    return "" if ref.source else QUARANTINE.get(ref.domain, {}).get(ref.task_id, "")


def held_out(ref: TaskRef) -> bool:
    """Whether the task belongs to a split that is kept for selection or testing, by whatever split it was named."""
    return ref.split in (SELECT, *synth.HELD_OUT) or is_test(ref)


def is_test(ref: TaskRef) -> bool:
    """Whether it is a test task, by whatever split it was named (`base` has test tasks too)."""
    if _is_synthesised(ref):
        return ref.split == "synth-test"
    loaded = domain(ref.domain)
    if ref.source and _is_copied(ref):
        return True
    return "test" in loaded.splits(ref.source) and ref.task_id in loaded.tasks("test", ref.source)


def _is_copied(ref: TaskRef) -> bool:
    """Whether a task of a file asks what one of tau2's own test tasks asks, in the same words."""
    return _words_of(domain(ref.domain).task(ref)) in _tested_words(ref.domain)


@functools.cache
def _tested_words(name: str) -> frozenset[str]:
    loaded = domain(name)
    return frozenset(map(_words_of, loaded.tasks("test").values())) if "test" in loaded.splits() else frozenset()


def _words_of(task: Any) -> str:
    return " ".join(str(task.user_scenario.instructions).split())


def refuse_leak(learned: Iterable[TaskRef], selection: Iterable[TaskRef]) -> None:
    """Raise UserError when checkpoints would be chosen by test tasks, or by tasks that are trained on."""
    selection = list(selection)
    if tested := [ref.key for ref in selection if is_test(ref)]:
        raise UserError(
            f"{len(tested)} of the tasks to choose a checkpoint by are test tasks, among them `{tested[0]}`: "
            "a checkpoint that was chosen by them has no test left",
            hint="choose by `train-select` (mock: synth-select), and evaluate on the test split what was chosen, once",
        )
    trained = {ref.key for ref in learned}
    if seen := [ref.key for ref in selection if ref.key in trained]:
        raise UserError(
            f"{len(seen)} of the tasks to choose a checkpoint by are trained on, among them `{seen[0]}`: "
            "success on them shows what was memorised",
            hint="train on `train-learn` and choose by `train-select`, which share no task",
        )


def changed_something(episode: Episode) -> bool:
    """Whether anybody called a tool that can change the world: one of the agent's that writes, or any of the user's."""
    types = domain(episode.task.domain).tool_types
    agent = (action for turn in episode.turns for action in turn.actions if isinstance(action, CallTool))
    return any(types.get(call.name) == "write" for call in agent) or any(
        message.get("role") == "user" and message.get("tool_calls") for message in episode.trajectory
    )


def judged_by(task: Any) -> str:
    """What makes a model grade the task: "NL_ASSERTION", or "" where tau2 grades it by rules alone."""
    criteria = task.evaluation_criteria
    basis = {str(b.value) for b in (criteria.reward_basis if criteria else ())}
    return "NL_ASSERTION" if "NL_ASSERTION" in basis and criteria.nl_assertions else ""


def entities(task: Any) -> dict[str, set[str]]:
    """The database entities that a task names, by kind, from its scenario and reference actions.

    Found by the shape of their ids; good for overlap between splits, not a parser.
    """
    text = f"{task.user_scenario} {[a.arguments for a in gold_actions(task)]} {task.initial_state}"
    found = {kind: set(re.findall(pattern, text)) for kind, pattern in ENTITY_PATTERNS.items()}
    return {kind: values for kind, values in found.items() if values}


def overlap(left: Iterable[Any], right: Iterable[Any]) -> dict[str, list[str]]:
    """Entities that tasks of both sides name, by kind, sorted."""
    sides: list[dict[str, set[str]]] = []
    for tasks in (left, right):
        side: dict[str, set[str]] = {}
        for task in tasks:
            for kind, values in entities(task).items():
                side.setdefault(kind, set()).update(values)
        sides.append(side)
    shared = {kind: sorted(sides[0][kind] & sides[1].get(kind, set())) for kind in sides[0]}
    return {kind: values for kind, values in shared.items() if values}


def write_index(
    domains: Sequence[str], splits: Sequence[str], folder: Path, *, limit: int | None = None, source: Path | None = None
) -> list[Path]:
    """Write `DOMAIN_SPLIT.jsonl` for each pair and `all_SPLIT.jsonl` for each split; the paths written.

    A row is `{"text", "metadata": {"domain", "split", "task_id", "task_index"}}`, slime's `--input-key text --metadata-key
    metadata`. `text` is the user's first request, for people and length filters; the rollout opens the real
    conversation from the metadata. Raises UserError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for split in splits:
        merged: list[dict[str, Any]] = []
        for name in domains:
            named = {"source": source, "domains": (name,), "split": split, "limit": limit}
            rows = index_rows(select(TasksConfig.model_validate(named)))
            written.append(_write(folder / f"{name}_{split}.jsonl", rows))
            merged += rows
        written.append(_write(folder / f"all_{split}.jsonl", merged))
    return written


def index_rows(refs: Sequence[TaskRef]) -> list[dict[str, Any]]:
    """The prompt rows of tasks; `task_index` is the task's place in its domain's split."""
    rows: list[dict[str, Any]] = []
    for ref in refs:
        tasks = domain(ref.domain).tasks(ref.split, ref.source)
        metadata = {
            "domain": ref.domain,
            "split": ref.split,
            "task_id": ref.task_id,
            "task_index": list(tasks).index(ref.task_id),
        }
        rows.append({"text": opening_words(tasks[ref.task_id]), "metadata": metadata})
    return rows


def write_prompts(refs: Sequence[TaskRef], path: Path) -> Path:
    """The rows from which a training on slime plays, `--input-key input --metadata-key metadata`.

    A row only names its task, `{"input": "retail/17", "metadata": {"task": {"domain", "task_id", "split"}}}`: the episode's
    prompt is made when it begins.
    """
    return _write(path, [{"input": ref.key, "metadata": {"task": asdict(ref)}} for ref in refs])


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def refuse_held_out(tasks: Iterable[TaskRef]) -> None:
    """Raise UserError when a task belongs to a test or selection split."""
    if found := [task.key for task in tasks if held_out(task)]:
        raise UserError(
            f"{len(found)} of the tasks are kept for tests, among them `{found[0]}`; a training set must not have them",
            hint="choose a training split with `--task-split train` (mock: synth-train), or accept it with `allow_held_out=true`",
        )


def training_tasks(config: GrpoConfig) -> tuple[list[TaskRef], list[TaskRef]]:
    """The tasks to learn from, and those to validate on. Raises UserError where one must not be among them."""
    tasks = select(config.tasks)
    if not config.allow_held_out:
        refuse_held_out(tasks)
    val_tasks = select(config.val) if config.train.val_every else []
    refuse_leak(tasks, val_tasks)
    training_profile(config, tasks)
    return tasks, val_tasks


def training_profile(config: GrpoConfig, tasks: Sequence[TaskRef]) -> Profile | None:
    """What is known of the tasks to train on; None where no profile is named. Raises UserError for one of other tasks."""
    file, source = config.algo.curriculum.profile, config.tasks.source
    if file is None:
        return None
    sha256 = task_file(source_path(source)).sha256 if source else None
    return profile_for(file, (task.key for task in tasks), tasks_sha256=sha256)


def gold_actions(task: Any) -> list[Any]:
    """The task's reference actions of both sides, in order (tau2 `Action`s)."""
    return list((task.evaluation_criteria.actions if task.evaluation_criteria else None) or ())


def gold_script(ref: TaskRef, *, noise_prob: float = 0.0, seed: int = 0) -> tuple[Actions, ...]:
    """The turns that solve a task by its reference path.

    One turn an agent-side action; one message for each run of user-side actions, naming them; at the end a message with
    everything that must be communicated. A task of a file may bring its demonstration, a synthesised task has one of its own,
    with the questions that a user has to be asked; `noise_prob` is how often its teacher gets a change wrong, decided by `seed`.
    """
    if _is_synthesised(ref):
        made = synth.of(ref)
        return tuple((step,) for step in (synth.slipped(made, share=noise_prob, seed=seed) if noise_prob else made.demo))
    if ref.source and (shown := task_file(ref.source).demonstrations.get(ref.task_id)):
        return shown
    task = domain(ref.domain).task(ref)
    turns: list[Actions] = []
    asked: list[str] = []
    for action in gold_actions(task):
        if action.requestor == "user":
            asked.append(action.name)
            continue
        if asked:
            turns.append((ask(asked),))
            asked = []
        turns.append((CallTool(name=action.name, arguments=action.arguments),))
    if asked:
        turns.append((ask(asked),))
    turns.append(
        (Say(text=closing_words((task.evaluation_criteria.communicate_info if task.evaluation_criteria else None) or ())),)
    )
    return tuple(turns)


def ask(names: Sequence[str]) -> Say:
    """A request that the user perform its tools, in order.

    >>> ask(["toggle_airplane_mode", "reboot_device"]).text
    'Please do this on your phone: toggle airplane mode, then reboot device.'
    """
    return Say(text=f"Please do this on your phone: {', then '.join(name.replace('_', ' ') for name in names)}.")


def closing_words(information: Sequence[str]) -> str:
    """The last message, with what must be communicated.

    >>> closing_words(["327", "blue"])
    'That is done. For your information: 327; blue. Is there anything else?'
    """
    told = f" For your information: {'; '.join(information)}." if information else ""
    return f"That is done.{told} Is there anything else?"


_GOLD = "wrong reference actions; corrected in tau2-bench v1.0.0"
_IMPOSSIBLE = "impossible or contradictory constraints; changed in tau2-bench v1.0.0"
_DATA = "wrong data; corrected in tau2-bench v1.0.0"
_WORDING = "ambiguous wording or a policy loophole; reworded in tau2-bench v1.0.0"
_FALLBACK = "no fallback when the user's wish cannot be met; added in tau2-bench v1.0.0"
_EXCHANGE = "the exchange asked for is impossible; changed in tau2-bench v1.0.0"


def _with(reason: str, *ids: int) -> dict[str, str]:
    return {str(i): reason for i in ids}


QUARANTINE: dict[str, dict[str, str]] = {
    "airline": {
        **_with(_GOLD, 2, 7, 9, 27, 37, 38, 44),
        **_with(_IMPOSSIBLE, 14, 34, 42),
        **_with(_DATA, 23, 33),
        **_with(_WORDING, 5, 12, 13, 15, 16, 18, 19, 21, 25, 29, 30, 32, 36, 39, 43, 45),
        "35": "the user simulator invents a second passenger (issue #172); data changed in tau2-bench v1.0.0",
        "6": "no exit condition, so the user invents a duplicate booking (issue #494)",
    },
    "retail": {
        **_with(_GOLD, 12, 13, 33, 34, 59),
        **_with(_EXCHANGE, 18, 29, 91, 107),
        **_with(_FALLBACK, 20, 54, 62),
        **_with(_WORDING, 0, 1, 2, 3, 4, 8, 15, 22, 28, 55, 76, 98, 99, 100),
    },
    "mock": {
        "create_task_1_with_env_assertions": "its assertion raises when the task was not created, so a failure cannot be graded",
        "update_task_with_history_and_env_assertions": "it has no reference actions, but doing nothing does not solve it",
    },
}
