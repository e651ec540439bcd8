"""`tau2rl seed`: demonstrations by somebody who can solve the tasks, played in the real environment, as dataset rows."""

from __future__ import annotations

import asyncio

from tau2rl.config import KeepConfig, SeedConfig
from tau2rl.data.rollout_filter import Ledger
from tau2rl.env.gold import gold_script
from tau2rl.env.tasks import refuse_held_out
from tau2rl.policy.scripted import ScriptedPolicy
from tau2rl.recipes.dataset import make_source, missing, scan, summary, write
from tau2rl.recipes.play import Prepared, play, prepare, write_environment
from tau2rl.report.cost import account
from tau2rl.rollout.attempt import PolicyFor
from tau2rl.runs.folder import Result, RunFolder
from tau2rl.runs.progress import Progress
from tau2rl.runs.timing import starts
from tau2rl.types import Attempt, Policy

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


def _imperfect(config: SeedConfig, prepared: Prepared) -> PolicyFor | None:
    """The gold teacher with slips; None where nobody slips."""
    if not config.noise_prob:
        return None

    def policy(attempt: Attempt) -> Policy:
        return ScriptedPolicy(gold_script(attempt.task, noise_prob=config.noise_prob, seed=attempt.seed), prepared.codec)

    return policy
