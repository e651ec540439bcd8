"""`tau2rl eval` and `tau2rl.evaluate`: run the agent on the tasks, keep every episode, report with intervals and floors."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tau2rl.config import EvalConfig
from tau2rl.env.task_cells import cells_of
from tau2rl.env.tasks import describe
from tau2rl.protocols import ChatCodec
from tau2rl.recipes.play import Prepared, floors, play, prepare, write_environment
from tau2rl.recipes.test_access import find_test_access, log_test_access
from tau2rl.report.published import Published, against_card
from tau2rl.report.report import build_report
from tau2rl.runs.checkpoints import card_for
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import Progress
from tau2rl.runs.reports import Result
from tau2rl.runs.timing import sessions
from tau2rl.verify.attribution import account as blame_account, attribute, keep as keep_blame


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """An evaluation before its first episode: what it plays, and what it stands on is written down."""

    prepared: Prepared
    digest: str
    card: Published | None  # what the result is set beside
    test_access: dict[str, Any] | None  # the selection whose test this is, for the report


def run(config: EvalConfig, folder: RunFolder, progress: Progress) -> Result:
    """Carry out or continue an evaluation. Raises UserError for what cannot be run as asked."""
    begun = begin(config, folder, progress)
    asyncio.run(play(config, folder, begun.prepared, progress))
    report = conclude(config, folder, begun)
    return Result(report=report, complete=not report["incomplete"])


def begin(config: EvalConfig, folder: RunFolder, progress: Progress, *, codec: ChatCodec | None = None) -> Begun:
    """Load what is needed, and keep what the run stands on; `codec` stands in for that of the settings. Raises UserError."""
    prepared = prepare(config, progress, codec=codec)
    card = card_for(config, prepared.agent)
    access = find_test_access(config, prepared.agent, prepared.tasks)
    recorded = {"test_access": access.described()} if access else None
    digest = write_environment(config, folder, prepared, recorded=recorded)
    test_access = log_test_access(access, run=folder.path, digest=digest) if access else None
    return Begun(prepared=prepared, digest=digest, card=card, test_access=test_access)


def conclude(config: EvalConfig, folder: RunFolder, begun: Begun) -> dict[str, Any]:
    """The report of what the folder holds, written there too."""
    prepared = begun.prepared
    report = build_report(
        chain(folder.records(), folder.failed_records()),
        planned=prepared.planned,
        floors=floors(prepared.tasks),
        digest=begun.digest,
        repetitions=config.repetitions,
        tasks_with_writes={t.key for t in prepared.tasks if describe(t).changes_state},
        cells=cells_of(prepared.tasks),
        sessions=sessions(folder.path),
    )
    if begun.card:
        report["published"] = against_card(report, config, begun.card)
    if budget := prepared.meter.account():
        report["budget"] = budget
    if attributed := attribute(chain(folder.records(), folder.failed_records())):
        found = blame_account(attributed, config.tasks.domains)
        report["blame"] = found["scores"]
        keep_blame(folder.path, found)
    if begun.test_access:
        report["test_access"] = begun.test_access
    folder.write_report(report)
    return report
