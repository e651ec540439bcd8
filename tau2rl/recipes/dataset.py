"""From the episodes of runs to dataset rows: what `seed` and `rft-filter` have in common.

Two passes over the sources. The first adds every episode to a `RolloutFilter`; the second reads the ones that are kept once
more and writes them. No more than one episode is in memory at a time.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from tau2rl.chat import make_codec
from tau2rl.chat.cookbook import CookbookCodec
from tau2rl.chat.native import native_messages
from tau2rl.chat.template import openai_message
from tau2rl.chat.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from tau2rl.config import ChatConfig, PolicyConfig
from tau2rl.data import encoding
from tau2rl.data.jsonl import write_rows
from tau2rl.data.rollout_filter import Entry, RolloutFilter
from tau2rl.env.domain import domain
from tau2rl.env.task_cells import cell_of
from tau2rl.env.tasks import changed_something, held_out, kind_of
from tau2rl.errors import UserError
from tau2rl.hashing import derive_seed
from tau2rl.protocols import ChatCodec
from tau2rl.recipes.play import floors
from tau2rl.report.cost import Costs, account
from tau2rl.report.schema import SCHEMA
from tau2rl.reward.presets import RewardSpec
from tau2rl.reward.score import score_episode
from tau2rl.rollouts.episode import REPAIR_REQUEST
from tau2rl.runs import records
from tau2rl.runs.budget import Meter
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.timing import sessions
from tau2rl.types import CallTool, Episode, EpisodeRecord, Fault, Opening, Status, TaskRef, Turn, without_thoughts
from tau2rl.verify.blame import excluded
from tau2rl.verify.rules import calls_of, violations
from tau2rl.verify.verifiers import transcript_of

FLOOR_TASKS = 200  # of each domain at most: a floor is a share, and a thousand replays say no more than the first hundreds
PROGRESS_EVERY = 1000


@dataclass(slots=True, kw_only=True)
class Seen:
    """What the first pass found, beside the filter."""

    episodes: list[str] = field(default_factory=list[str])  # sha256 of each source's `episodes.jsonl`
    held_out: int = 0  # episodes on tasks that no training set should have
    costs: Costs = field(default_factory=Costs)
    floor_tasks: dict[str, dict[str, TaskRef]] = field(default_factory=dict[str, dict[str, TaskRef]])


def scan(
    sources: Sequence[SourceRun],
    rollouts: RolloutFilter,
    *,
    spec: RewardSpec,
    seed: int,
    progress: Progress,
    form: Collection[str] = (),
    exclude_faults: Collection[str] = (),
) -> Seen:
    """Add every episode of the sources to the filter, those that FAILED too; `form`: the rules of form to look for.

    Raises UserError for a line that is no episode.
    """
    seen, count = Seen(), 0
    kind, forbidden = functools.lru_cache(maxsize=65536)(kind_of), functools.lru_cache(maxsize=65536)(held_out)
    for number, source in enumerate(sources):
        digest = hashlib.sha256()
        for file, evidence in (("episodes.jsonl", True), ("failures.jsonl", False)):
            for position, record in read_episodes(source.path / file, digest.update if evidence else None):
                task = record.episode.task
                entry = _entry(record, kind=kind(task), source=number, position=position, spec=spec, seed=seed, form=form)
                spoiled = excluded(record.episode, exclude_faults)
                rollouts.add(entry if spoiled is None else replace(entry, excluded=f"{spoiled.fault.value}: {spoiled.name}"))
                seen.held_out += forbidden(task)
                seen.costs.add(record.episode)
                of_domain = seen.floor_tasks.setdefault(task.domain, {})
                if len(of_domain) < FLOOR_TASKS:
                    of_domain[task.key] = task
                count += 1
                if count % PROGRESS_EVERY == 0:
                    progress(ProgressEvent(done=count, total=None, note="reading episodes"))
        seen.episodes.append(digest.hexdigest())
    return seen


def write_dataset(
    stage: str,
    folder: Path,
    name: str,
    sources: Sequence[SourceRun],
    rollouts: RolloutFilter,
    seen: Seen,
    *,
    digest: str,
    planned: int | None,
    meter: Meter | None,
) -> dict[str, Any]:
    """Write what stays to `name` and what does not to `dropped.jsonl`, with its reason; the report, JSON-ready.

    `planned` and `meter`: attempts of the run's own sampling, and what it spent; of earlier runs both are in their own reports.
    """
    return {
        "schema": SCHEMA,
        "stage": stage,
        "digest": digest,
        "planned": planned,
        "incomplete": planned is not None and _missing(rollouts, planned) > 0,
        **_summary(rollouts, seen),
        "sources": _described(sources, seen),
        "files": _write(folder, name, sources, rollouts),
        "cost": account(sessions(folder), seen.costs) if meter else None,
        "budget": meter.account() if meter else None,
    }


def _write(folder: Path, name: str, sources: Sequence[SourceRun], rollouts: RolloutFilter) -> Mapping[str, Any]:
    rows = write_rows(folder / name, _kept_rows(sources, rollouts))
    dropped = write_rows(
        folder / "dropped.jsonl", ({**asdict(d), "source": str(sources[d.source].path)} for d in rollouts.dropped())
    )
    return {w.file: {"rows": w.rows, "sha256": w.sha256} for w in (rows, dropped)}


def _described(sources: Sequence[SourceRun], seen: Seen) -> list[dict[str, str]]:
    """Whose episodes were read, for the report."""
    return [
        {"path": str(source.path), "digest": source.digest, "episodes_sha256": sha256}
        for source, sha256 in zip(sources, seen.episodes, strict=True)
    ]


def _missing(rollouts: RolloutFilter, planned: int) -> int:
    """Planned attempts that a resumed run could still bring: all that are neither graded nor refused by their task."""
    return planned - rollouts.counts().get("all", {"graded": 0})["graded"] - rollouts.reasons().get("fault: task", 0)


def _summary(rollouts: RolloutFilter, seen: Seen) -> dict[str, Any]:
    """The report of a dataset: kept of tried, by domain and kind, how evenly it is spread, and what a constant policy solves."""
    overall = rollouts.counts().get("all", {"tried": 0, "graded": 0, "solved": 0, "kept": 0, "tasks": 0, "covered": 0})
    tasks = [task for of_domain in seen.floor_tasks.values() for task in of_domain.values()]
    return {
        **overall,
        "coverage": round(overall["covered"] / overall["tasks"], 4) if overall["tasks"] else None,
        "domains": rollouts.counts("domain"),
        "kinds": rollouts.counts("domain || '/' || kind"),
        "cells": rollouts.counts("domain || ': ' || cell"),
        "diversity": {"kinds": rollouts.diversity("domain, kind"), "tasks": rollouts.diversity("task")},
        "dropped": rollouts.reasons(),
        "floor": floors(tasks),
        "floor_tasks": len(tasks),
    }


def read_episodes(path: Path, each: Callable[[bytes], object] | None = None) -> Iterator[tuple[int, EpisodeRecord]]:
    """Position and record of every whole line of a file, which need not exist; `each` is given the lines' bytes."""
    if not path.exists():
        return
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = records.decode(line)
            except UserError as error:
                raise UserError(f"`{path}` line {number}: {error.message}", hint=error.hint) from None
            if each:
                each(line)
            yield position, record
            position += len(line)


def signature(episode: Episode) -> str:
    """16 hex digits that name the tool calls of an episode in their order, and where it spoke between them.

    What it said does not count: two attempts that do the same in other words are the same.
    """
    done = [
        [action.name, action.arguments] if isinstance(action, CallTool) else "say"
        for turn in episode.turns
        for action in without_thoughts(turn.actions)
    ]
    return hashlib.sha256(json.dumps(done, sort_keys=True).encode()).hexdigest()[:16]


def broken_form(episode: Episode, form: Collection[str]) -> list[str]:
    """Which of these rules of form a conversation broke; nothing of one without messages."""
    if not form or not episode.messages:
        return []
    kinds = domain(episode.task.domain).tool_types
    failed = any(call.error and kinds.get(call.call.name) == "write" for call in calls_of(episode.messages))
    return [name for name in (*violations(transcript_of(episode)), *(["failed_write"] if failed else [])) if name in form]


def _entry(
    record: EpisodeRecord, *, kind: str, source: int, position: int, spec: RewardSpec, seed: int, form: Collection[str]
) -> Entry:
    episode, attempt = record.episode, record.attempt
    score, place = score_episode(episode, spec), cell_of(episode.task)
    return Entry(
        source=source,
        position=position,
        domain=episode.task.domain,
        task=episode.task.key,
        kind=kind,
        key=attempt.key,
        index=attempt.index,
        reward=score.task if score else 0.0,
        partial=(score.partial if score else None) or 0.0,
        no_op=not changed_something(episode),
        fault=(episode.fault or Fault.INFRA).value if episode.status is Status.FAILED else "",
        excluded="",
        signature=signature(episode),
        user=place.user,
        cell=", ".join(filter(None, (place.cell, place.behaviour.partition("/")[0]))),  # of the behaviour its pace
        form=", ".join(broken_form(episode, form)),
        pick=derive_seed(seed, source, attempt.key),
    )


def _kept_rows(sources: Sequence[SourceRun], rollouts: RolloutFilter) -> Iterator[dict[str, Any]]:
    opened: tuple[int, BinaryIO] | None = None
    try:
        for number, position in rollouts.kept():
            if opened is None or opened[0] != number:
                if opened:
                    opened[1].close()
                opened = number, (sources[number].path / "episodes.jsonl").open("rb")
            opened[1].seek(position)
            yield dataset_row(records.decode(opened[1].readline()), sources[number])
    finally:
        if opened:
            opened[1].close()


Chat = dict[str, Any]  # one message


@dataclass(frozen=True, kw_only=True)
class SourceRun:
    """One run whose episodes are used: `SourceRun(path=Path("outputs/eval/x"), run="x", policy="sglang", chat=..., ...)`."""

    path: Path
    run: str
    policy: str
    chat: ChatConfig
    fingerprint: str  # of the codec that wrote its tokens
    digest: str  # of what the run stood on
    cookbook: CookbookCodec | None = field(default=None)  # writes the messages of that protocol; None: the native form

    @cached_property
    def codec(self) -> ChatCodec:
        """What wrote its tokens. Raises UserError for a tokenizer that is gone."""
        return self.cookbook or make_codec(self.chat)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What reads its tokens. Raises UserError for a tokenizer that is gone."""
        if self.chat.protocol == "transcript" or self.chat.tokenizer is None:
            return ByteTokenizer()
        return load_tokenizer(self.chat.tokenizer)


def make_source(path: Path, name: str, policy: PolicyConfig, chat: ChatConfig, *, fingerprint: str, digest: str) -> SourceRun:
    """A run as a source. Raises UserError when its protocol cannot be written any more (a tokenizer that is gone)."""
    codec = make_codec(chat) if chat.protocol == "cookbook" else None
    return SourceRun(
        path=path,
        run=name,
        policy=policy.model or policy.kind,
        chat=chat,
        fingerprint=fingerprint,
        digest=digest,
        cookbook=codec if isinstance(codec, CookbookCodec) else None,
    )


def dataset_row(record: EpisodeRecord, source: SourceRun) -> dict[str, Any]:
    """The row of one episode, with its origin. Raises UserError for a tokenizer that is gone."""
    episode, task = record.episode, record.episode.task
    loaded, place = domain(task.domain), cell_of(task)
    metadata = {
        "id": record.attempt.key,
        "domain": task.domain,
        "task_id": task.task_id,
        "split": task.split,
        "kind": kind_of(task),
        "cell": place.cell,
        **{name: value for name, value in (("user_id", place.user), ("behaviour", place.behaviour)) if value},
        "seed": episode.seed,
        "reward": record.score.task if record.score else None,
        "partial": record.score.partial if record.score else None,
        "policy": source.policy,
        "protocol": source.chat.protocol,
        "chat": source.fingerprint,
        "run": source.run,
        "digest": source.digest,
    }
    opening = Opening(domain_policy=loaded.policy, messages=episode.messages, tools=loaded.tools)
    dicts = source.cookbook.conversation(opening) if source.cookbook else native_messages(opening)
    return {
        "messages": [openai_message(message) for message in _with_lost_turns(dicts, episode, source)],
        "tools": [] if source.cookbook else list(loaded.tools),  # the cookbook has them in its system message
        "metadata": metadata,
        **_tokens(episode),
    }


def _with_lost_turns(dicts: list[Chat], episode: Episode, source: SourceRun) -> list[Chat]:
    """The messages, and before each repair request the turn that earned it; one without a request ends the conversation."""
    out, position, behind = list[Chat](), 0, 0
    for turn in episode.turns:
        if _was_carried_out(turn) or not episode.token_ids:
            continue
        asked = _repair_request(dicts, behind, turn)
        out += [*dicts[position:asked], {"role": "assistant", "content": _text(turn, episode, source), "step_loss_mask": 0}]
        position, behind = asked, asked + 1
    return [*out, *dicts[position:]]


def _was_carried_out(turn: Turn) -> bool:
    return bool(turn.actions)


def _repair_request(dicts: list[Chat], start: int, turn: Turn) -> int:
    """Where the answer to a malformed turn stands; the end of the conversation where there was none."""
    if turn.malformed is None:
        return len(dicts)
    begins = f"{REPAIR_REQUEST}{turn.malformed.value})"
    found = (i for i in range(start, len(dicts)) if dicts[i]["role"] == "user" and dicts[i]["content"].startswith(begins))
    return next(found, len(dicts))


def _text(turn: Turn, episode: Episode, source: SourceRun) -> str:
    """What was sampled, without the token that ended the turn."""
    ids = episode.token_ids[turn.start : turn.end]
    ended = ids[-1] in source.codec.stop_token_ids
    return source.tokenizer.decode(ids[:-1] if ended else ids)


def _tokens(episode: Episode) -> dict[str, Any]:
    """The tokens up to the last sampled one, and which to learn: all that were sampled in turns that were carried out.

    Nothing of an episode in several pieces, where thoughts were taken out: its messages have them, and are written anew.
    """
    if not episode.token_ids or not episode.turns:
        return {}
    sample, *more = encoding.pack(episode)
    if more:
        return {}
    mask = list(sample.loss_mask)
    for turn in episode.turns:
        if not _was_carried_out(turn):
            mask[turn.start : turn.end] = [0] * (turn.end - turn.start)
    return {"token_ids": list(sample.token_ids), "loss_mask": mask}
