"""Prompt rows for trainers that read a file: one JSON line a task, merged over domains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tau2rl.bench.domain import domain
from tau2rl.bench.scripted_users import opening_words
from tau2rl.bench.tasks import select
from tau2rl.config import DomainName, TasksConfig
from tau2rl.types import TaskRef


def write_index(domains: Sequence[DomainName], splits: Sequence[str], folder: Path, *, limit: int | None = None) -> list[Path]:
    """Write `DOMAIN_SPLIT.jsonl` for each pair and `all_SPLIT.jsonl` for each split; the paths written.

    A row is `{"text", "metadata": {"domain", "split", "task_id", "task_index"}}`, slime's `--input-key text --metadata-key
    metadata`. `text` is the customer's first request, for people and length filters; the rollout opens the real
    conversation from the metadata. Raises UserError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for split in splits:
        merged: list[dict[str, Any]] = []
        for name in domains:
            rows = index_rows(select(TasksConfig(domains=(name,), split=split, limit=limit)))
            written.append(_write(folder / f"{name}_{split}.jsonl", rows))
            merged += rows
        written.append(_write(folder / f"all_{split}.jsonl", merged))
    return written


def index_rows(refs: Sequence[TaskRef]) -> list[dict[str, Any]]:
    """The prompt rows of tasks; `task_index` is the task's place in its domain's split."""
    rows: list[dict[str, Any]] = []
    for ref in refs:
        tasks = domain(ref.domain).tasks(ref.split)
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
