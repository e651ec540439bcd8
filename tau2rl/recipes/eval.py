"""`tau2rl eval`: run the agent on the tasks, keep every episode, report with intervals and floors."""

from __future__ import annotations

import asyncio
from itertools import chain

from tau2rl.config import EvalConfig
from tau2rl.env.tasks import describe
from tau2rl.recipes.play import floors, play, prepare, write_environment
from tau2rl.recipes.test_access import find_test_access, log_test_access
from tau2rl.report.report import build_report
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import Progress
from tau2rl.runs.reports import Result
from tau2rl.runs.timing import sessions


def run(config: EvalConfig, folder: RunFolder, progress: Progress) -> Result:
    """Carry out or continue an evaluation. Raises UserError for what cannot be run as asked."""
    prepared = prepare(config, progress)
    access = find_test_access(config, prepared.agent, prepared.tasks)
    recorded = {"test_access": access.described()} if access else None
    digest = write_environment(config, folder, prepared, recorded=recorded)
    test_access = log_test_access(access, run=folder.path, digest=digest) if access else None
    asyncio.run(play(config, folder, prepared, progress))
    report = build_report(
        chain(folder.records(), folder.failed_records()),
        planned=prepared.planned,
        floors=floors(prepared.tasks),
        digest=digest,
        tasks_with_writes={t.key for t in prepared.tasks if describe(t).changes_state},
        sessions=sessions(folder.path),
    )
    if test_access:
        report["test_access"] = test_access
    folder.write_report(report)
    return Result(report=report, complete=not report["incomplete"])
