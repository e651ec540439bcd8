"""What `sft` and `grpo` have in common: the one place that chooses a backend, its plan, and the report of what it left."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tau2rl import plugins
from tau2rl.backend import Backend, Plan, Trained, TrainingConfig
from tau2rl.config import GrpoConfig, SftConfig, StageConfig
from tau2rl.config.kinds import backend_traits
from tau2rl.errors import RunIncomplete, UserError, all_of
from tau2rl.runs.budget import tell_estimate
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.prices import refuse_unpriced
from tau2rl.runs.provenance import described_checkpoint
from tau2rl.runs.reports import Result
from tau2rl.runs.trackers import trackers_of

STRETCHES = ("yarn", "linear", "dynamic")  # rotary positions that `factor` stretches, whatever max_position_embeddings says

log = logging.getLogger(__name__)


def backend_for(config: TrainingConfig) -> Backend:
    """Where the model of these settings is trained. Raises UserError for code of the user's that is not there."""
    match config.backend:
        case "local":
            from tau2rl.train.backend import LocalBackend  # torch: seconds, and only here

            return LocalBackend()
        case "slime":
            from tau2rl.slime.backend import SlimeBackend

            return SlimeBackend()
        case reference:
            return plugins.make_plugin(reference, kind="backend")


def trains_on_actors(config: StageConfig) -> bool:
    """Whether the job may have actors of its own that pass tensors to one another and whose words must be heard.

    Those of slime do, and nobody knows of a backend of the user's; the local one trains in the job itself.
    """
    return isinstance(config, SftConfig | GrpoConfig) and not backend_traits(config.backend).in_job


def planned(backend: Backend, config: TrainingConfig) -> Plan:
    """What is going to happen, on this machine. Raises UserError with all that speaks against it; warnings are logged."""
    refuse_unpriced(config)
    if config.budget.like is not None and not backend_traits(config.backend).in_job:  # which says it itself
        tell_estimate(config, config.train.steps)
    plan = backend.plan(config, probe=True)
    if errors := [issue for issue in plan.issues if issue.kind == "error"]:
        raise all_of(UserError(issue.message, hint=issue.hint) for issue in errors)
    for issue in plan.issues:
        log.warning("%s (%s)", issue.message, issue.hint)
    return plan


def max_positions(checkpoint: Path) -> int | None:
    """How many tokens a checkpoint's `config.json` says that a sequence may have; None where it does not say.

    Stretched positions (YaRN, as Qwen documents it) count as what they are stretched to.
    """
    if not (checkpoint / "config.json").is_file():
        return None
    whole = read_json(checkpoint / "config.json")
    config: dict[str, Any] = {**whole, **whole.get("text_config", {})}  # a model that sees images keeps its language model there
    known = config.get("max_position_embeddings")
    if not isinstance(known, int):
        return None
    stretched = config.get("rope_parameters") or config.get("rope_scaling")
    rope = cast("dict[str, Any]", stretched) if isinstance(stretched, dict) else {}
    if rope.get("rope_type", rope.get("type")) not in STRETCHES:
        return known
    before: int = rope.get("original_max_position_embeddings") or known
    return max(known, int(before * rope.get("factor", 1)))


def refuse_long_episodes(context_tokens: int, checkpoint: Path) -> None:
    """Raise UserError where an episode may grow longer than its model's positions."""
    positions = max_positions(checkpoint)
    if positions is not None and context_tokens > positions:
        raise UserError(
            f"`limits.context_tokens` is {context_tokens}, and the model in `{checkpoint}` has {positions} positions",
            hint=f"`--set limits.context_tokens={positions}`: an episode that would grow longer is cut off there",
        )


def within_positions(config: SftConfig, checkpoint: Path) -> SftConfig:
    """The settings with rows no longer than the model's positions: a longer one is left out, and named, by either backend."""
    positions = max_positions(checkpoint)
    if positions is None or config.data.max_tokens <= positions:
        return config
    log.info("the model has %d positions: rows of more tokens are left out", positions)
    return config.model_copy(update={"data": config.data.model_copy(update={"max_tokens": positions})})


def conclude_training(
    config: TrainingConfig, folder: RunFolder, trained: Trained, *, digest: str, inputs: Mapping[str, Any], **data: Any
) -> Result:
    """Write the report. `data`: what it was trained on. Raises RunIncomplete where training ended before its last step."""
    report: dict[str, Any] = {}
    if trained.checkpoint is not None:
        report = {
            "stage": config.stage,
            "backend": config.backend,
            "digest": digest,
            "incomplete": bool(trained.interrupted),
            "inputs": dict(inputs),
            "outputs": {"checkpoint": described_checkpoint(trained.checkpoint)},
            **data,
            "training": trained.training,
            "cost": trained.cost,
        }
        folder.write_report(report)
        trackers_of(folder, config).lineage(report)
    if trained.interrupted:
        raise RunIncomplete(trained.interrupted)
    return Result(report=report, complete=True)
