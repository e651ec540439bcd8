"""`tau2rl sft`: supervised training on whole conversations; rows in, a checkpoint and an account of every row out."""

from __future__ import annotations

from tau2rl.backend import Backend
from tau2rl.config import SftConfig
from tau2rl.errors import UserError
from tau2rl.recipes.training import backend_for, conclude_training, planned, within_positions
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.provenance import described_checkpoint, described_files, environment
from tau2rl.runs.reports import Result


def run(config: SftConfig, folder: RunFolder, progress: Progress, backend: Backend | None = None) -> Result:
    """Train, or go on with it. Raises UserError for what cannot be run as asked, RunIncomplete when it ends early."""
    refuse_no_rows(len(config.data.files))
    progress(ProgressEvent(done=0, total=config.train.steps, unit="steps", note="reading rows"))
    data = described_files(config.data.files)
    backend = backend or backend_for(config)
    plan = planned(backend, config)

    start = backend.start(config, folder)
    parent = described_checkpoint(start)
    identity = {"data": [file["sha256"] for file in data], "parent": parent["sha256"]}
    stands_on = environment(config, {}, identity, recorded=plan.recorded)
    folder.write_environment(stands_on)

    trained = backend.train(within_positions(config, start), folder, progress)
    inputs = {"data": data, "parent": parent}
    return conclude_training(config, folder, trained, digest=stands_on["digest"], inputs=inputs, rows=trained.rows)


def refuse_no_rows(files: int) -> None:
    """Raise UserError where no file is named."""
    if not files:
        raise UserError("no rows to train on", hint="`--data FILE` or `data.files`: JSONL rows, as `tau2rl seed` writes them")
