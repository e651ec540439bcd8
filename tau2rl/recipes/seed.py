"""`tau2rl seed`: demonstrations by somebody who can solve the tasks, made in the real environment, as dataset rows."""

from __future__ import annotations

import asyncio

from tau2rl.config import KeepConfig, SeedConfig, dump
from tau2rl.data.rollout_filter import RolloutFilter
from tau2rl.env.tasks import gold_script, refuse_held_out
from tau2rl.policy.scripted import ScriptedPolicy
from tau2rl.protocols import Policy
from tau2rl.recipes.dataset import make_source, scan, write_dataset
from tau2rl.recipes.play import Prepared, play, prepare, write_environment
from tau2rl.rollouts.runner import PolicyFor
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import Progress
from tau2rl.runs.reports import Result
from tau2rl.types import Attempt

ROWS = "rows.jsonl"


def run(config: SeedConfig, folder: RunFolder, progress: Progress) -> Result:
    """Run the episodes and write the rows, or go on with it. Raises UserError for what cannot be run as asked."""
    prepared = prepare(config, progress)
    if not config.allow_held_out:
        refuse_held_out(prepared.tasks)
    digest = write_environment(config, folder, prepared)
    asyncio.run(play(config, folder, prepared, progress, policies=_imperfect(config, prepared)))
    sources = [make_source(folder.path, config.name, config.policy, config.chat, fingerprint=prepared.chat, digest=digest)]
    with RolloutFilter() as rollouts:
        form = config.balance.form if config.keep == "solved+form" else ()
        seen = scan(sources, rollouts, spec=prepared.spec, seed=config.seed, progress=progress, form=form)
        rollouts.apply(KeepConfig(**dump(config.balance), attempts=config.keep, per_task=None))
        planned, meter = len(prepared.planned), prepared.meter
        report = write_dataset("seed", folder.path, ROWS, sources, rollouts, seen, digest=digest, planned=planned, meter=meter)
    folder.write_report(report)
    return Result(report=report, complete=not report["incomplete"])


def _imperfect(config: SeedConfig, prepared: Prepared) -> PolicyFor | None:
    """The gold teacher with noise; None where there is none."""
    if not config.noise_prob:
        return None

    def policy(attempt: Attempt) -> Policy:
        return ScriptedPolicy(gold_script(attempt.task, noise_prob=config.noise_prob, seed=attempt.seed), prepared.codec)

    return policy
