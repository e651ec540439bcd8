"""Results that others have published (`published.yaml`), and whether a model before training reaches those of its own card.

A base model that scores far from its card is measured with a wrong set-up more often than the card is wrong. A trained checkpoint
is never set against a card.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from tau2rl.config import EvalConfig
from tau2rl.errors import UserError

FILE = Path(__file__).with_name("published.yaml")
MEAN = "mean"  # of the domains, where a source has no more
MANY = 0.05  # of the episodes: so many malformed or cut off are a reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One row; shares are from 0 to 1, `domains` without those that it does not have."""

    model: str
    of: Literal["card", "trained"]
    split: str
    tasks: str
    protocol: str
    user: str
    source: str
    domains: dict[str, float] = field(default_factory=dict[str, float])  # pass@1
    mean: float | None = None
    thinking: Literal["on", "off"] | None = None  # None: not stated


@cache
def rows() -> tuple[Published, ...]:
    """All rows of the file, in its order."""
    return tuple(TypeAdapter(list[Published]).validate_python(yaml.safe_load(FILE.read_text(encoding="utf-8"))))


def beside(domain: str, split: str) -> list[Published]:
    """The rows on the tasks of this domain and split.

    >>> "WRIT, Qwen3-4B-Instruct-2507" in [row.model for row in beside("retail", "base")], beside("mock", "synth-test")
    (True, [])
    """
    return [row for row in rows() if domain in row.domains and row.split == split]


def card_named(name: str) -> Published:
    """The card of a model. Raises UserError where none is known."""
    cards = {row.model.lower(): row for row in rows() if row.of == "card"}
    found = cards.get(name.rpartition("/")[2].lower())
    if found is None:
        raise UserError(
            f"no published card of `{name}` is known", hint=f"known: {', '.join(row.model for row in cards.values())}"
        )
    return found


def card_of(names: Iterable[str]) -> Published | None:
    """The card of the first of these paths and names that is, to the letter, that of a model; None: there is none.

    >>> [getattr(card_of([name]), "model", None) for name in ("/m/Qwen3-4B-Instruct-2507", "Qwen/qwen3-4b", "Qwen3-4B-mine")]
    ['Qwen3-4B-Instruct-2507', 'Qwen3-4B', None]
    >>> card_of(["/hub/models--Qwen--Qwen3-4B-Instruct-2507/snapshots/cdbee75f"]).model
    'Qwen3-4B-Instruct-2507'
    """
    cards = {row.model.lower(): row for row in rows() if row.of == "card"}
    words = (word for name in names for word in _words(name))
    return next((cards[word] for word in words if word in cards), None)


def _words(name: str) -> Iterator[str]:
    """What of a path may be a model's name: its last part, and what the hub's cache has made a folder of."""
    yield name.rstrip("/").rpartition("/")[2].lower()
    yield from (found.lower() for found in re.findall(r"models--[^/]*?--([^/]+)", name))


def against_card(report: Mapping[str, Any], config: EvalConfig, row: Published) -> dict[str, Any]:
    """An evaluation beside the card of its model, JSON-ready: both numbers, where the card is outside the interval, and why."""
    published = row.domains or ({MEAN: row.mean} if row.mean is not None else {})
    sections = {**report["by_domain"], **({MEAN: report["macro"]} if len(report["by_domain"]) > 2 else {})}
    domains: dict[str, Any] = {}
    for name, value in published.items():
        if name in sections:
            measured = sections[name]["pass@1"]
            ci95 = measured["ci95"]
            inside = None if ci95 is None else ci95[0] <= value <= ci95[1]
            domains[name] = {"published": value, "measured": measured["value"], "ci95": ci95, "inside": inside}
    return {**asdict(row), "domains": domains, "differs": _differs(config, row), "look_at": _look_at(report)}


def _differs(config: EvalConfig, row: Published) -> list[str]:
    """In what the run is not as the card's."""
    tasks, chat, out = config.tasks, config.chat, list[str]()
    part = tasks.ids or tasks.limit or tasks.skip or tasks.source or tasks.exclude_quarantined
    if tasks.split != row.split or part:
        out.append(f"tasks: {'a part of ' if part else ''}split `{tasks.split}`, and the card has the {row.tasks}")
    by_api = config.policy.kind == "api"  # its server has the template, and may think or not
    if chat.protocol != row.protocol and not by_api:
        out.append(f"protocol: `{chat.protocol}`, and the card has the model's own function calling")
    if row.thinking is not None and not by_api and (chat.thinking == "off") != (row.thinking == "off"):
        out.append(f"thinking: `{chat.thinking}`, and the card's is {row.thinking}")
    if config.user.kind == "scripted":
        out.append("user simulator: the scripted one, and the card has a model")
    return out


def _look_at(report: Mapping[str, Any]) -> list[str]:
    """What to look at first where the numbers do not agree: what this very run shows, then what often is wrong."""
    episodes: Mapping[str, int] = report["episodes"]
    total = sum(episodes.values()) or 1
    out = [
        f"{episodes[kind]} of {total} episodes are {kind}: {why}"
        for kind, why in (
            ("malformed", "the chat template or the parser of tool calls is not the model's"),
            ("truncated", "`limits` or the context of the server are too small, or it does not stop"),
        )
        if episodes[kind] / total > MANY
    ]
    return [
        *out,
        "the chat template and the tool parser (`tau2rl show RUN_DIR`: are calls read as calls?)",
        "thinking and sampling (temperature, top_p) as the card recommends them",
        "the user simulator: another model moves a score by several points",
        "the tasks' version: later releases of tau2-bench have changed tasks under the same ids",
    ]
