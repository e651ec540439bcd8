"""Published data sets as rows of tau2rl, and AReaL's tasks as domains with the databases that they are played on.

Of a row nothing is lost: what is neither messages nor tools stands in its `metadata`, with the file, the layout and the licence.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tau2rl.chat.template import chat_dicts, openai_message
from tau2rl.data.encoding import sampled_turns, unmasked_turns
from tau2rl.data.jsonl import naming, read_row_file, save_rows
from tau2rl.data.layouts import NOT_SAID, RowLayout, layout_of, row_facts
from tau2rl.data.rows import BadRow, Row
from tau2rl.errors import UserError
from tau2rl.runs.files import write_json
from tau2rl.runs.provenance import file_hash

PLUGIN = "areal_tau2"
MODULE = '''"""Domains of AReaL-tau2-data, for `plugins`. Written by `tau2rl data import`."""

from pathlib import Path

from tau2rl.env.snapshots import register

register(Path(__file__).parent)
'''


def convert_published(file: Path, output: Path, *, licence: str, thoughts: bool, bad: list[str] | None) -> dict[str, Any]:
    """Write what the file has; what was written, JSON-ready. `bad` gets what cannot be read; None: refuse. Raises UserError."""
    first = next(read_row_file(file), None)
    if first is None:
        raise UserError(f"`{file}` has no rows")
    layout = layout_of(first[1])
    if layout in (RowLayout.AREAL_TASK, RowLayout.TASK):
        return _tasks(file, output, bad=bad)
    if not layout.is_conversation:
        raise UserError(
            f"`{file}` is of no layout that is known here: its first row has {', '.join(first[1]) or 'nothing'}",
            hint="WRIT-2K, AReaL-tau2-data, tau2-sft-seed-v3, or OpenAI `messages`",
        )
    found: list[str] = []
    written = save_rows(output, lambda: _rows(file, licence=licence, thoughts=thoughts, bad=_anew(found, bad)))
    if bad is not None:
        bad += found
    return {"layout": layout.value, "what": "rows", "rows": written.rows, "bad": len(found), "sha256": written.sha256}


def _anew(found: list[str], asked: list[str] | None) -> list[str] | None:
    """An empty list to name bad rows in: Parquet goes through the rows twice."""
    found.clear()
    return None if asked is None else found


def _rows(file: Path, *, licence: str, thoughts: bool, bad: list[str] | None) -> Iterator[dict[str, Any]]:
    refuse = naming(bad)
    for at, data in read_row_file(file, on_bad=refuse):
        try:
            row, said = row_facts(data, name=at, licence=licence, source=file.name)
        except BadRow as error:
            refuse(at, str(error))
            continue
        origin = {"source": said.source, "source_row": at, "layout": said.layout.value, "licence": said.licence}
        facts = {"id": said.id, "domain": said.domain, "task_id": said.task, "user_id": said.user, "cell": said.cell}
        rest = {key: value for key, value in data.items() if key not in ("messages", "prompt", "answer", "tools", "metadata")}
        own = cast("Mapping[str, Any]", data.get("metadata") or {})
        known = {key: value for key, value in {**facts, "reward": said.reward}.items() if value not in ("", None)}
        metadata = {**known, **rest, **own, **{key: value for key, value in origin.items() if value != NOT_SAID}}
        yield {"messages": openai_messages(row, thoughts=thoughts), "tools": list(row.tools), "metadata": metadata}


def openai_messages(row: Row, *, thoughts: bool = True) -> list[dict[str, Any]]:
    """A conversation as OpenAI has it, with what is not learned marked; without `thoughts` without them."""
    messages = [openai_message(message) for message in chat_dicts(row.messages)]
    for turn in {*sampled_turns(replace(row, last_only=False))} - {*unmasked_turns(row)}:
        messages[turn]["step_loss_mask"] = 0
    if not thoughts:
        messages = [{key: value for key, value in message.items() if key != "reasoning_content"} for message in messages]
    return messages


def _tasks(file: Path, output: Path, *, bad: list[str] | None) -> dict[str, Any]:
    """AReaL's tasks in a folder: one file and one database for each database that the rows name. Raises UserError."""
    from tau2rl.env.snapshots import DOMAINS, load_database

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"`{output}` is there already", hint="name a new folder with `--output`")
    groups = _grouped(file, bad)
    domains: dict[str, dict[str, str]] = {}
    for base, database in sorted(groups):
        source = file.parent / database
        if not source.resolve().is_relative_to(file.parent.resolve()):
            raise UserError(f"`{file}` names a database outside of its folder: `{database}`")
        load_database(source, base)
        name = f"areal-{base}-{sum(parts['base'] == base for parts in domains.values())}"
        domains[name] = {"base": base, "database": source.name, "tasks": f"{name}.json", "sha256": file_hash(source)}
    output.mkdir(parents=True, exist_ok=True)
    for parts, key in zip(domains.values(), sorted(groups), strict=True):
        (output / parts["tasks"]).write_text(json.dumps(groups[key], indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.copyfile(file.parent / key[1], output / parts["database"])
    write_json(output / DOMAINS, domains)
    (output / f"{PLUGIN}.py").write_text(MODULE, encoding="utf-8")
    options = f"--plugins {PLUGIN} --domains {','.join(domains)} --task-split train"
    play = f"PYTHONPATH={shlex.quote(str(output))} tau2rl rft-filter {options}"
    return {
        "layout": RowLayout.AREAL_TASK.value,
        "what": "tasks",
        "rows": sum(map(len, groups.values())),
        "bad": len(bad or ()),
        "domains": {
            name: {**parts, "tasks": len(groups[key])} for (name, parts), key in zip(domains.items(), sorted(groups), strict=True)
        },
        "play": [play],
    }


def _grouped(file: Path, bad: list[str] | None) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(domain, database) -> its tasks, each checked against tau2's own model. Raises UserError."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    ids: dict[tuple[str, str], int] = {}
    refuse = naming(bad)
    for at, data in read_row_file(file, on_bad=refuse):
        try:
            task, base = read_task(data)
        except BadRow as error:
            refuse(at, str(error))
            continue
        key = (base, str(data["db_path"]))
        times = ids[key[0], task["id"]] = ids.get((key[0], task["id"]), 0) + 1
        if times > 1:  # ids of this data set are not unique everywhere
            task["id"] = f"{task['id']}#{times}"
        groups.setdefault(key, []).append({**task, "source_row": at})
    return groups


def read_task(data: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A row of AReaL's tasks as tau2's task, and its domain; its criteria are JSON text. Raises BadRow."""
    from tau2rl.env.snapshots import DATABASES
    from tau2rl.env.task_files import check_task

    task = dict(data)
    if not isinstance(data.get("db_path"), str):
        raise BadRow("it names no database (`db_path`)")
    if isinstance(task.get("evaluation_criteria"), str):
        try:
            task["evaluation_criteria"] = json.loads(task["evaluation_criteria"])
        except ValueError:
            raise BadRow("its `evaluation_criteria` are text, but no JSON") from None
    try:
        checked = check_task(task, "the row")
    except UserError as error:
        raise BadRow(error.message) from None
    base = str(getattr(checked.user_scenario.instructions, "domain", ""))
    if base not in DATABASES:
        raise BadRow(f"its instructions are of the domain `{base}`")
    return task, base
