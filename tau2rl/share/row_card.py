"""The card of a dataset that is made of row files: counts, origins, licences, and what its rows share with the test tasks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from tau2rl.data.inspection import facts
from tau2rl.errors import UserError
from tau2rl.report.tables import printable
from tau2rl.runs.files import replacing, writing
from tau2rl.share.dataset import size_category
from tau2rl.share.render import markdown_page
from tau2rl.synth.contamination import KINDS, RowGuard

MADE_BY = "made with `tau2rl data card`"
NAMED = 50  # rows that are named in the card
HUB_LICENCES = ("not said",)  # no licence of the hub's list


def facts_of_files(files: Sequence[Path], counted: Callable[[Sequence[Path]], dict[str, Any]], *, licence: str) -> dict[str, Any]:
    """The numbers of the card, JSON-ready: of each file, of all, and the overlap with the test tasks. Raises UserError."""
    names = [file.name.partition(".")[0] for file in files]
    if len(set(names)) < len(names):
        raise UserError("two files have one name, and a split has one file", hint="name them train.jsonl, val.jsonl, ...")
    splits = {
        name: {"file": file.name, "sha256": _sha256(file), "rows": counted([file])["rows"]}
        for name, file in zip(names, files, strict=True)
    }
    return {"splits": splits, "all": counted(files), "overlap": overlap(files, licence=licence)}


def overlap(files: Sequence[Path], *, licence: str = "") -> dict[str, Any]:
    """How many rows share what with tau2's test tasks, by domain and kind, and the first of them by name."""
    guard, named = RowGuard(), list[dict[str, Any]]()
    kinds: dict[str, Counter[str]] = {}
    found = 0
    for at, _, said in facts(files, bad=lambda fault: None, licence=licence):
        counts = kinds.setdefault(said.domain or "not said", Counter())
        counts["rows"] += 1
        shared = guard.of_row(said)
        counts.update(list(shared))
        counts["rows that share something"] += bool(shared)
        found += bool(shared)
        if shared and len(named) < NAMED:
            named.append({"at": at, "shares": sorted(shared)})
    domains = {
        name: {
            "compared": list(guard.compared(name)),
            "rows": counts["rows"],
            "sharing": counts["rows that share something"],
            "by_kind": {kind: counts[kind] for kind in KINDS if kind in guard.compared(name)},
        }
        for name, counts in sorted(kinds.items())
    }
    return {"rows": found, "domains": domains, "named": named}


def write(card: Path, found: dict[str, Any], *, name: str) -> None:
    """Write the card. Raises UserError where somebody else's stands."""
    if card.exists() and MADE_BY not in card.read_text("utf-8", "replace"):
        raise UserError(f"`{card}` is there already, and was not made here", hint="name another file with `--output`")
    licences = [one for one in found["all"]["by_licence"] if one not in HUB_LICENCES]
    metadata: dict[str, Any] = {
        **({"license": printable(licences[0])} if len(licences) == 1 else {"license": "other"} if licences else {}),
        "language": ["en"],
        "pretty_name": printable(name),
        "size_categories": [size_category(found["all"]["rows"])],
        "tags": ["tau2-bench", "tool-use", "conversational", "agents", "tau2rl"],
        "task_categories": ["text-generation"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split.replace("-", "_"), "path": part["file"]} for split, part in found["splits"].items()
                ],
            }
        ],
    }
    page = markdown_page(
        "rows.md.jinja",
        metadata=Markup(str(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)).strip()),  # noqa: S704 - YAML, not a page
        name=name,
        all=found["all"],
        splits=found["splits"],
        overlap=found["overlap"],
        licences=licences,
        sizes=[key for key in ("turns", "calls", "writes") if found["all"].get(key)],
    )
    with writing(card), replacing(card) as out:
        out.write(page.encode("utf-8", "replace"))


def _sha256(path: Path) -> str:
    with path.expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
