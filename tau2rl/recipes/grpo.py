"""`tau2rl grpo`: reinforcement learning on groups of attempts; tasks and a checkpoint in, a better checkpoint out.

What may be trained on is decided here, for every backend; the loop itself is `train/grpo.py`, or slime's.
"""

from __future__ import annotations

import logging

from tau2rl.backend import Backend
from tau2rl.chat import codec_fingerprint, make_codec
from tau2rl.config import GrpoConfig
from tau2rl.env.domain import env_identity
from tau2rl.env.tasks import training_profile, training_tasks
from tau2rl.env.user_simulator import check_answers, check_key
from tau2rl.recipes.training import backend_for, conclude_training, planned, refuse_long_episodes
from tau2rl.reward.calibration import read_recipe
from tau2rl.reward.presets import spec_from
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.provenance import described_checkpoint, environment
from tau2rl.runs.reports import Result

log = logging.getLogger(__name__)


def run(config: GrpoConfig, folder: RunFolder, progress: Progress, backend: Backend | None = None) -> Result:
    """Train, or go on with it. Raises UserError for what cannot be run as asked, RunIncomplete when it ends early."""
    progress(ProgressEvent(done=0, total=config.train.steps, unit="steps", note="loading tasks and model"))
    tasks, _ = training_tasks(config)
    spec_from(config.reward, max_turns=config.limits.max_turns, domains=config.tasks.domains)  # refuses a dominated reward
    recipe = None if config.reward.recipe is None else read_recipe(config.reward.recipe)  # refuses one that was changed or failed
    if recipe is None and config.algo.estimator == "mt_gtpo":
        log.warning("`mt_gtpo` without a calibrated recipe (`tau2rl calibrate`, then `reward.recipe`): turn rewards are a guess")
    backend = backend or backend_for(config)
    plan = planned(backend, config)
    if plan.user is None and config.user.kind == "llm":
        check_key(config.user)
        check_answers(config.user, config.tasks.domains)

    start = backend.start(config, folder)
    refuse_long_episodes(config.limits.context_tokens, start)
    parent = described_checkpoint(start)
    bench = env_identity(config.tasks, plan.user or config.user, val=config.val if config.train.val_every else None)
    identity = {"chat": codec_fingerprint(make_codec(config.chat)), "parent": parent["sha256"]}
    if recipe is not None:
        identity["recipe"] = recipe["digest"]
    if (profile := training_profile(config, tasks)) is not None:
        identity["profile"] = profile.digest
        aside = sum(task.key in profile.set_aside for task in tasks)
        log.info(
            "the profile knows %d of %d tasks and sets %d aside", sum(t.key in profile.evidence for t in tasks), len(tasks), aside
        )
    stands_on = environment(config, bench, identity, recorded=plan.recorded)
    folder.write_environment(stands_on)

    trained = backend.train(config, folder, progress)
    return conclude_training(config, folder, trained, digest=stands_on["digest"], inputs={"parent": parent}, tasks=len(tasks))
