"""`tau2rl seed`: demonstrations by somebody who can solve the tasks, played in the real environment, as dataset rows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tau2rl.bench.gold import gold_script
from tau2rl.bench.tasks import held_out
from tau2rl.config import KeepConfig, SeedConfig
from tau2rl.errors import UserError
from tau2rl.metrics.cost import account
from tau2rl.policies.scripted import ScriptedPolicy
from tau2rl.stages import Result
from tau2rl.stages.clock import starts
from tau2rl.stages.dataset import missing, scan, summary, write
from tau2rl.stages.ledger import Ledger
from tau2rl.stages.play import PolicyFor, Prepared, play, prepare, write_environment
from tau2rl.stages.sft_rows import make_source
from tau2rl.store.progress import Progress
from tau2rl.store.run import RunFolder
from tau2rl.types import Attempt, Policy, TaskRef

ROWS = "rows.jsonl"
EVERYTHING = KeepConfig(dedupe=False, per_task=None)


def run(config: SeedConfig, folder: RunFolder, progress: Progress) -> Result:
    """Play and write, or continue with it. Raises UserError for what cannot be run as asked."""
    prepared = prepare(config, progress)
    if not config.allow_held_out:
        refuse_held_out(prepared.tasks)
    digest = write_environment(config, folder, prepared)
    asyncio.run(play(config, folder, prepared, progress, policies=_imperfect(config, prepared)))
    source = make_source(folder.path, config.name, config.policy, config.chat, fingerprint=prepared.chat, digest=digest)
    with Ledger() as ledger:
        seen = scan([source], ledger, spec=prepared.spec, seed=config.seed, progress=progress)
        ledger.strike(EVERYTHING, solved_only=config.keep == "solved")
        found = summary(ledger, seen)
        report = {
            "stage": "seed",
            "digest": digest,
            "planned": len(prepared.planned),
            "incomplete": missing(ledger, len(prepared.planned)) > 0,
            **found,
            "files": write(folder.path, ROWS, [source], ledger),
            "cost": account(starts(folder), seen.costs),
        }
    folder.write_report(report)
    return Result(report=report, complete=not report["incomplete"])


def refuse_held_out(tasks: Iterable[TaskRef]) -> None:
    """Raise UserError when a task belongs to a test or selection split."""
    if found := [task.key for task in tasks if held_out(task)]:
        raise UserError(
            f"{len(found)} of the tasks are kept for tests, among them `{found[0]}`; a training set must not have them",
            hint="choose a training split with `--task-split train` (mock: synth-train), or accept it with `allow_held_out=true`",
        )


def _imperfect(config: SeedConfig, prepared: Prepared) -> PolicyFor | None:
    """The gold teacher with slips; None where nobody slips."""
    if not config.slip:
        return None

    def policy(attempt: Attempt) -> Policy:
        return ScriptedPolicy(gold_script(attempt.task, slip=config.slip, seed=attempt.seed), prepared.codec)

    return policy
