"""`tau2rl eval`: play the tasks, keep every episode, report with intervals and floors."""

from __future__ import annotations

import asyncio
from itertools import chain

from tau2rl.config import EvalConfig
from tau2rl.env.tasks import describe
from tau2rl.recipes.play import floors, play, prepare, write_environment
from tau2rl.recipes.test_access import find_exam, register
from tau2rl.report.report import build_report
from tau2rl.runs.folder import Result, RunFolder
from tau2rl.runs.progress import Progress
from tau2rl.runs.timing import starts


def run(config: EvalConfig, folder: RunFolder, progress: Progress) -> Result:
    """Carry out or continue an evaluation. Raises UserError for what cannot be run as asked."""
    prepared = prepare(config, progress)
    exam = find_exam(config, prepared.agent, prepared.tasks)
    recorded = {"selected_by": exam.described()} if exam else None
    digest = write_environment(config, folder, prepared, recorded=recorded)
    selected_by = register(exam, run=folder.path, digest=digest) if exam else None
    asyncio.run(play(config, folder, prepared, progress))
    report = build_report(
        chain(folder.records(), folder.failed_records()),
        planned=prepared.planned,
        floors=floors(prepared.tasks),
        digest=digest,
        tasks_with_writes={t.key for t in prepared.tasks if describe(t).changes_state},
        starts=starts(folder),
    )
    if selected_by:
        report["selected_by"] = selected_by
    folder.write_report(report)
    return Result(report=report, complete=not report["incomplete"])
