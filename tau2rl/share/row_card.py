"""The card of a dataset that is made of row files: counts, origins, licences, and what its rows share with the test tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tau2rl.config import DOMAINS
from tau2rl.data.inspection import Stats, facts
from tau2rl.data.layouts import NOT_SAID, Facts
from tau2rl.env.domain import domain
from tau2rl.errors import UserError
from tau2rl.runs.files import replacing, writing
from tau2rl.runs.provenance import file_hash
from tau2rl.share.dataset import hub_metadata
from tau2rl.share.render import markdown_page
from tau2rl.synth.row_guard import RowGuard

MADE_BY = "made with `tau2rl data card`"
NAMED = 50  # rows that are named in the card


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
        if shared and len(self._named) < NAMED:
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


def count(files: Sequence[Path]) -> dict[str, Any]:
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
