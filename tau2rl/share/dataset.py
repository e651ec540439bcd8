"""Conversations as a dataset of `messages` and `tools`: files for TRL, and a folder with a card for the Hugging Face hub.

`trl`: `SPLIT.jsonl`, arguments of calls as objects, as chat templates take them. `hf`: `data/SPLIT.jsonl`, or Parquet, and
`README.md`; arguments as JSON text, because Arrow gives every object of a column the keys of all of them. `tools` is JSON text
in both, which TRL reads. A dataset that is made of row files has a card too: counts, origins, licences, and what its rows share
with the test tasks.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import yaml
from markupsafe import Markup

from tau2rl.config import DOMAINS
from tau2rl.data.inspection import Stats, facts
from tau2rl.data.jsonl import save_rows
from tau2rl.data.layouts import NOT_SAID, Facts
from tau2rl.env.domain import domain
from tau2rl.env.tasks import held_out, is_test
from tau2rl.errors import UserError
from tau2rl.recipes.dataset import SourceRun, dataset_row
from tau2rl.recipes.rft import source_of
from tau2rl.report.tables import printable
from tau2rl.runs.files import replacing, writing
from tau2rl.runs.provenance import file_hash
from tau2rl.share.kept import KeptRun
from tau2rl.share.render import markdown_page
from tau2rl.synth.contamination import RowGuard
from tau2rl.types import EpisodeRecord, Status

Layout = Literal["trl", "hf"]


@dataclass(slots=True, kw_only=True)
class SplitCount:
    """What a file of rows has: `SplitCount(rows=40, solved=40, tasks={"retail/3"}, test_tasks=set())`."""

    rows: int = 0
    solved: int = 0
    bytes: int = 0
    sha256: str = ""
    domains: Counter[str] = field(default_factory=Counter[str])
    tasks: set[str] = field(default_factory=set[str])
    test_tasks: set[str] = field(default_factory=set[str])  # of tau2-bench's test splits
    held_out: set[str] = field(default_factory=set[str])  # those, and those that checkpoints are chosen by


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenDataset:
    """What was written, and what was not."""

    files: dict[str, Path]  # by split
    counts: dict[str, SplitCount]
    left_out: Counter[str]


def export(
    run: KeptRun, folder: Path, *, layout: Layout, keep: str, allow_held_out: bool, license: str | None, parquet: bool = False
) -> WrittenDataset:
    """Write the files, `parquet` where it is asked for (`hf`). Raises UserError, as for test tasks that were not asked for."""
    if license and not re.fullmatch(r"[A-Za-z0-9.+-]{1,60}", license):
        raise UserError("a licence is one word of the hub's list", hint="such as `--license apache-2.0`")
    source, left_out = source_of(run.path), Counter[str]()
    refs = {record.attempt.task for record in run.records() if not _left_out(record, keep)}
    if not allow_held_out and (kept_apart := sorted(ref.key for ref in refs if held_out(ref))):
        raise UserError(
            f"{len(kept_apart)} of the tasks are kept for tests, among them `{kept_apart[0]}`; a dataset is trained on",
            hint="export a run on a training split, or accept it with `--allow-held-out`: the card will say so",
        )
    place = folder if layout == "trl" else folder / "data"
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
    files, counts = dict[str, Path](), dict[str, SplitCount]()
    for split in sorted({ref.split for ref in refs}):
        file = files[split] = place / f"{split}.{'parquet' if parquet else 'jsonl'}"
        with writing(file):
            if parquet:
                counts[split] = _write_parquet(file, run, split, keep, source)
                continue
            with replacing(file) as out:
                counts[split] = _write(out, _records(run, split, keep), source, layout)
    for record in run.records():
        if reason := _left_out(record, keep):
            left_out[reason] += 1
    written = WrittenDataset(files=files, counts=counts, left_out=left_out)
    if layout == "hf":
        card = folder / "README.md"
        with writing(card), replacing(card) as out:
            out.write(dataset_card(run, written, keep=keep, license=license).encode("utf-8", "replace"))
    return written


def _records(run: KeptRun, split: str, keep: str) -> Iterator[EpisodeRecord]:
    return (r for r in run.records() if r.attempt.task.split == split and not _left_out(r, keep))


def _left_out(record: EpisodeRecord, keep: str) -> str:
    episode = record.episode
    if episode.status is Status.FAILED or episode.grade is None:
        return "failed"
    if not episode.messages:
        return "no conversation"
    return "" if keep == "all" or episode.grade.success else "not solved"


def _write(out: BinaryIO, kept: Iterator[EpisodeRecord], source: SourceRun, layout: Layout) -> SplitCount:
    count, digest = SplitCount(), hashlib.sha256()
    for record in kept:
        row = _row(record, source, layout)
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
        out.write(line)
        digest.update(line)
        count.bytes += len(line)
        _count(count, record)
    count.sha256 = digest.hexdigest()
    return count


def _write_parquet(file: Path, run: KeptRun, split: str, keep: str, source: SourceRun) -> SplitCount:
    """The same rows as one file of Arrow's columns. Raises UserError where its library is not installed."""
    written = save_rows(file, lambda: (_row(record, source, "hf") for record in _records(run, split, keep)))
    count = SplitCount(bytes=file.stat().st_size, sha256=written.sha256)
    for record in _records(run, split, keep):
        _count(count, record)
    return count


def _count(count: SplitCount, record: EpisodeRecord) -> None:
    task = record.attempt.task
    count.rows += 1
    count.solved += record.episode.solved
    count.domains[task.domain] += 1
    count.tasks.add(task.key)
    if is_test(task):
        count.test_tasks.add(task.key)
    if held_out(task):
        count.held_out.add(task.key)


def _row(record: EpisodeRecord, source: SourceRun, layout: Layout) -> dict[str, Any]:
    row = dataset_row(record, source)
    meta = {
        key: row["metadata"][key]
        for key in ("id", "domain", "task_id", "split", "kind", "reward", "partial", "policy", "protocol")
    }
    meta = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in meta.items()}
    ended = {"status": record.episode.status.value, "stop_reason": record.episode.stop_reason.value}
    messages = [_message(message, as_text=layout == "hf") for message in row["messages"]]
    return {**meta, **ended, "messages": messages, "tools": json.dumps(row["tools"], ensure_ascii=False)}


def _message(message: Mapping[str, Any], *, as_text: bool) -> dict[str, Any]:
    """An OpenAI message; its calls' arguments as an object, or as JSON text."""
    plain = {key: value for key, value in message.items() if key != "step_loss_mask"}
    if not message.get("tool_calls") or as_text:
        return plain
    calls = [
        {**c, "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"])}} for c in message["tool_calls"]
    ]
    return {**plain, "tool_calls": calls}


def dataset_card(run: KeptRun, written: WrittenDataset, *, keep: str, license: str | None) -> str:
    """`README.md` of the dataset: the hub's metadata, and what the rows are, from counts and provenance alone."""
    counts = written.counts
    metadata = hub_metadata(
        f"tau2-bench conversations of {run.model}",
        licence=license,
        rows=sum(count.rows for count in counts.values()),
        files={split: f"data/{written.files[split].name}" for split in counts},
    )
    bench = run.identity.get("bench", {})
    tested = set[str]().union(*(count.test_tasks for count in counts.values()))
    apart = set[str]().union(*(count.held_out for count in counts.values())) - tested
    return markdown_page(
        "dataset.md.jinja",
        metadata=metadata,
        run=run,
        keep=keep,
        counts=counts,
        left_out=written.left_out,
        tested=sorted(tested),
        apart=sorted(apart),
        tau2=bench.get("tau2") or {},
        data=bench.get("data") or {},
        license=license,
    )


def hub_metadata(name: str, *, licence: str | None, rows: int, files: Mapping[str, str]) -> Markup:
    """The head of a dataset's card, which the hub reads; `files`: split -> its file."""
    values: dict[str, Any] = {
        **({"license": printable(licence)} if licence else {}),
        "language": ["en"],
        "pretty_name": printable(name),
        "size_categories": [_size(rows)],
        "tags": ["tau2-bench", "tool-use", "conversational", "agents", "tau2rl"],
        "task_categories": ["text-generation"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split.replace("-", "_"), "path": path} for split, path in files.items()],
            }
        ],
    }
    return Markup(str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True)).strip())  # noqa: S704 - YAML, not a page


def _size(rows: int) -> str:
    """The hub's word for it.

    >>> _size(40), _size(2500), _size(10**9)
    ('n<1K', '1K<n<10K', '100M<n<1B')
    """
    bounds = [
        (10**3, "n<1K"),
        (10**4, "1K<n<10K"),
        (10**5, "10K<n<100K"),
        (10**6, "100K<n<1M"),
        (10**7, "1M<n<10M"),
        (10**8, "10M<n<100M"),
    ]
    return next((word for bound, word in bounds if rows < bound), "100M<n<1B")


MADE_BY = "made with `tau2rl data card`"
NAMED_ROWS = 50  # rows that are named in the card


class OverlapCount:
    """Counts the rows that share something with tau2's test tasks, by domain and kind, and names the first of them."""

    def __init__(self) -> None:
        self._guard = RowGuard()
        self._kinds: dict[str, Counter[str]] = {}
        self._named: list[dict[str, Any]] = []

    def add(self, at: str, said: Facts) -> None:
        """Take a row in."""
        counts = self._kinds.setdefault(said.domain or NOT_SAID, Counter())
        shared = self._guard.of_row(said)
        counts.update(["rows", *(["sharing"] if shared else []), *shared])
        if shared and len(self._named) < NAMED_ROWS:
            self._named.append({"at": at, "shares": sorted(shared)})

    def report(self) -> dict[str, Any]:
        """The counts, JSON-ready."""
        domains = {
            name: {
                "compared": list(self._guard.compared(name)),
                "rows": counts["rows"],
                "sharing": counts["sharing"],
                "by_kind": {kind: counts[kind] for kind in self._guard.compared(name)},
            }
            for name, counts in sorted(self._kinds.items())
        }
        found = sum(counts["sharing"] for counts in self._kinds.values())
        return {"rows": found, "domains": domains, "named": self._named}


def describe_rows(files: Sequence[Path], *, licence: str) -> dict[str, Any]:
    """The numbers of the card, JSON-ready: of each file, of all, and the overlap with the test tasks. Raises UserError."""
    names = [file.name.partition(".")[0] for file in files]
    if len(set(names)) < len(names):
        raise UserError("two files have one name, and a split has one file", hint="name them train.jsonl, val.jsonl, ...")
    counts, overlap, bad = Stats(writing_tools()), OverlapCount(), set[str]()
    splits: dict[str, dict[str, Any]] = {}
    for name, file in zip(names, files, strict=True):
        rows = 0
        for at, _, said in facts([file], bad=lambda fault: bad.add(fault.at), licence=licence):
            counts.add(said)
            overlap.add(at, said)
            rows += 1
        splits[name] = {"file": file.name, "sha256": file_hash(file.expanduser()), "rows": rows}
    return {"splits": splits, "all": {"bad": len(bad), **counts.report()}, "overlap": overlap.report()}


def row_counts(files: Sequence[Path]) -> dict[str, Any]:
    """The counts of the files' conversations, JSON-ready. Raises UserError."""
    counts, bad = Stats(writing_tools()), set[str]()
    for _, _, said in facts(files, bad=lambda fault: bad.add(fault.at)):
        counts.add(said)
    return {"bad": len(bad), **counts.report()}


def writing_tools() -> set[str]:
    """The tools of tau2's own domains that change a database; no two domains have tools of one name that differ in that."""
    return {tool for name in DOMAINS for tool, kind in domain(name).tool_types.items() if kind == "write"}


def write_row_card(card: Path, found: dict[str, Any], *, name: str) -> None:
    """Write the card. Raises UserError where somebody else's stands."""
    if card.exists() and MADE_BY not in card.read_text("utf-8", "replace"):
        raise UserError(f"`{card}` is there already, and was not made here", hint="name another file with `--output`")
    licences = [one for one in found["all"]["by_licence"] if one != NOT_SAID]
    page = markdown_page(
        "rows.md.jinja",
        metadata=hub_metadata(
            name,
            licence=licences[0] if len(licences) == 1 else "other" if licences else None,
            rows=found["all"]["rows"],
            files={split: part["file"] for split, part in found["splits"].items()},
        ),
        name=name,
        all=found["all"],
        splits=found["splits"],
        overlap=found["overlap"],
        licences=licences,
        sizes=[key for key in ("turns", "calls", "writes") if found["all"].get(key)],
    )
    with writing(card), replacing(card) as out:
        out.write(page.encode("utf-8", "replace"))
