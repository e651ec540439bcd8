"""From a config to the function that carries it out; a stage and its libraries are imported only when it runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tau2rl.config import EvalConfig, GrpoConfig, RftConfig, SeedConfig, SftConfig
from tau2rl.errors import UserError
from tau2rl.store.files import write_json
from tau2rl.store.progress import Progress
from tau2rl.store.run import RunFolder, stage_of

if TYPE_CHECKING:
    from tau2rl.stages import Result


def run_stage(folder: RunFolder, progress: Progress) -> Result:
    """Run the stage of the folder's config to its end, and keep what it took. Raises what the stage raises."""
    began, cpu = time.monotonic(), time.process_time()
    try:
        return _run(folder, progress)
    finally:
        write_json(folder.usage, {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu})


def _run(folder: RunFolder, progress: Progress) -> Result:
    match folder.config:
        case EvalConfig() as config:
            from tau2rl.stages import eval as stage

            return stage.run(config, folder, progress)
        case SeedConfig() as config:
            from tau2rl.stages import seed as stage

            return stage.run(config, folder, progress)
        case RftConfig() as config:
            from tau2rl.stages import rft as stage

            return stage.run(config, folder, progress)
        case SftConfig(backend="slime") | GrpoConfig(backend="slime") as config:
            from tau2rl.stages import slime_run as stage

            return stage.run(config, folder, progress)
        case SftConfig() as config:
            from tau2rl.stages import sft as stage

            return stage.run(config, folder, progress)
        case GrpoConfig() as config:
            from tau2rl.stages import grpo as stage

            return stage.run(config, folder, progress)
        case other:
            raise UserError(f"stage `{stage_of(other)}` cannot be run")
