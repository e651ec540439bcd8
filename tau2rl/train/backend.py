"""The `local` backend: torch in this process, on a CPU or one GPU. What it trains with is in the other files of this package."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from tau2rl.backend import Plan, Trained, TrainingConfig
from tau2rl.chat import make_codec
from tau2rl.chat.tokenizers import load_tokenizer
from tau2rl.config import GrpoConfig, SftConfig
from tau2rl.data.encoding import encode_rows, warn_of_long_rows
from tau2rl.data.rows import read_rows
from tau2rl.env.tasks import select
from tau2rl.env.tau2_env import warm_up
from tau2rl.report.cost import account
from tau2rl.reward.presets import spec_from
from tau2rl.runs.budget import Spent, is_over, step_meter, stop
from tau2rl.runs.checkpoints import FINAL, INITIAL, STATE, begins_anew, exports, last_step
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.timing import PhaseTimer, sessions, timed
from tau2rl.runs.tracking import Curves
from tau2rl.train.engine.proof import record_engine
from tau2rl.train.grpo import GRPO, Rollouts
from tau2rl.train.metrics import metrics_summary
from tau2rl.train.model import num_parameters, open_model, prepare_machine, trainable, write_checkpoint
from tau2rl.train.sft import SFTStep, Split, account_of, mean_loss, split_rows, train, training_samples
from tau2rl.train.state import STATE_FILE
from tau2rl.train.tiny import create_tiny
from tau2rl.train.trainer import GRPOTrainer

log = logging.getLogger(__name__)


class LocalBackend:
    """Trains here; see `tau2rl.backend.Backend`."""

    def plan(self, config: TrainingConfig, *, probe: bool) -> Plan:
        """What this process would do. With `probe`: raises UserError for a device that is not there."""
        if probe:
            prepare_machine(config.local)
        return Plan(layout=(f"{config.local.device}: training" + (" and sampling" if isinstance(config, GrpoConfig) else ""),))

    def start(self, config: TrainingConfig, folder: RunFolder) -> Path:
        """The checkpoint that training starts from; a tiny one is made on the first start and kept."""
        if config.model.init != "tiny":
            return Path(config.model.init).expanduser()
        assert isinstance(config, SftConfig)  # the config refuses `tiny` elsewhere
        initial = folder.checkpoints / INITIAL
        if not initial.exists():
            create_tiny(read_rows(config.data), config.local.shape, initial, seed=config.seed)
        return initial

    def train(self, config: TrainingConfig, folder: RunFolder, progress: Progress) -> Trained:
        """Train, or go on from the last saved state. Raises UserError, and RunIncomplete when the environment stays broken."""
        start = self.start(config, folder)
        match config:
            case SftConfig():
                return _train_sft(config, folder, progress, start)
            case GrpoConfig():
                return _train_grpo(config, folder, progress, start)

    def checkpoint(self, run: Path, step: int) -> Path | None:
        """`checkpoints/step_00020`, where `train.export_every` left one, or `final`, of a run that ended with this step."""
        checkpoints = run / "checkpoints"
        places = [checkpoints / f"step_{step:05}", *([checkpoints / FINAL] if step == last_step(run) else [])]
        return next((place for place in places if (place / "config.json").is_file()), None)


def _train_sft(config: SftConfig, folder: RunFolder, progress: Progress, start: Path) -> Trained:
    tokenizer = load_tokenizer(str(start))
    encoded = encode_rows(read_rows(config.data), tokenizer, max_tokens=config.data.max_tokens, chat=config.chat)
    rows = split_rows(encoded, val_fraction=config.data.val_fraction)
    log.info("%d rows to train on, %d for validation, %d left out", len(rows.train), len(rows.val), len(encoded.dropped))
    warn_of_long_rows(encoded.dropped, max_tokens=config.data.max_tokens)
    log.info("rows: exact %d, rendered %d", encoded.exact, len(encoded.rows) - encoded.exact)
    if encoded.thoughts_left_out:
        log.warning("the thoughts of %d rows are left out: chat.thinking is `off`", encoded.thoughts_left_out)
    final = folder.checkpoints / FINAL
    with timed(folder, device=config.local.device) as timer:
        with timer.phase("loading"):
            base = open_model(start, config.local)
            record_engine(base, folder.record)
            model = trainable(base, config.local, seed=config.seed)
        if not rows.train and config.data.allow_empty:
            log.warning("no row is left: the model is handed on as it is")
            training: dict[str, Any] = {"steps": 0, "reason": "no row is left"}
        else:
            training = _SFTRun(config, folder, progress, timer).train(model, rows, start)
        with timer.phase("saving"):
            write_checkpoint(model, final, tokenizer=start)
    return Trained(checkpoint=final, training=training, cost=account(sessions(folder.path)), rows=account_of(encoded, rows))


class _SFTRun:
    """The loop of `sft.py` with what surrounds it: curves, progress, the timer, exported checkpoints."""

    def __init__(self, config: SftConfig, folder: RunFolder, progress: Progress, timer: PhaseTimer) -> None:
        self._config, self._folder, self._progress, self._timer = config, folder, progress, timer
        self._began = time.monotonic()
        self._tokens, self._seconds = 0, 0.0
        self._padding = self._shared = 0.0  # shares, weighted by tokens

    def train(self, model: nn.Module, rows: Split, start: Path) -> dict[str, Any]:
        """Train the model in place; what the report says of it."""
        config, folder = self._config, self._folder
        if not os.path.lexists(folder.checkpoints / STATE / STATE_FILE):
            begins_anew(folder, save_every=config.train.save_every)

        def val_loss() -> float | None:
            if not rows.val:
                return None
            with self._timer.phase("validation"):
                return mean_loss(
                    model, training_samples(rows.val), max_tokens_per_microbatch=config.local.max_tokens_per_microbatch
                )

        before, meter = val_loss(), step_meter(config, folder, total=config.train.steps)
        with Curves(config, folder) as curves:

            def on_begin(done: int) -> None:
                meter.count_done(done)
                is_over(meter, done)
                stop(meter, done)

            def on_step(step: SFTStep) -> None:
                meter.count(Spent(seconds=step.seconds))
                self._timer.largest_step = meter.largest
                self._log(step, curves)
                if exports(step.step, config.train.export_every):
                    with self._timer.phase("saving"):
                        write_checkpoint(model, folder.checkpoints / f"step_{step.step:05}", tokenizer=start)
                if exports(step.step, config.train.save_every):
                    self._timer.write()
                is_over(meter, step.step)
                stop(meter, step.step)

            result = train(
                model, rows.train, config.train, config.local,
                seed=config.seed, val=rows.val, folder=folder.checkpoints / STATE, on_begin=on_begin, on_step=on_step,
            )  # fmt: skip
        return {
            **asdict(result),
            "loss": result.loss if math.isfinite(result.loss) else None,  # nan: there was no step left
            "val_loss_before": before,
            "val_loss_after": val_loss(),
            "parameters": num_parameters(model),
            "trained_parameters": num_parameters(model, trainable=True),
            "tokens": self._tokens,
            "tokens_per_second": self._tokens / self._seconds if self._seconds else None,
            "padding_share": self._padding / self._tokens if self._tokens else None,
            "shared_share": self._shared / self._tokens if self._tokens else None,
        }

    def _log(self, step: SFTStep, curves: Curves) -> None:
        curves.write(step.step, {name: value for name, value in asdict(step).items() if name != "step"})
        self._tokens += step.tokens
        self._seconds += step.seconds
        self._padding += step.tokens * step.padding_share
        self._shared += step.tokens * step.shared_share
        self._timer.trained = self._tokens
        self._timer.add("update", step.seconds)  # with the step's own validation and save
        seconds, note = time.monotonic() - self._began, f"loss {step.loss:.3f}"
        self._progress(
            ProgressEvent(
                done=step.step, total=self._config.train.steps, tokens=self._tokens, seconds=seconds, unit="steps", note=note
            )
        )


def _train_grpo(config: GrpoConfig, folder: RunFolder, progress: Progress, start: Path) -> Trained:
    tasks, val_tasks = select(config.tasks), select(config.val) if config.train.val_every else []
    domains = list(dict.fromkeys([task.domain for task in (*tasks, *val_tasks)]))
    codec = make_codec(config.chat)
    warm_up(domains, codec)
    spec = spec_from(config.reward, max_turns=config.limits.max_turns, domains=domains)
    final = folder.checkpoints / FINAL
    with timed(folder, device=config.local.device) as timer:
        with timer.phase("loading"):
            trainer = _grpo_trainer(config, start, folder)
        rollouts = Rollouts(config=config, codec=codec, spec=spec, folder=folder, tasks=tasks)
        loop = GRPO(
            config=config, folder=folder, progress=progress, trainer=trainer, rollouts=rollouts, val_tasks=val_tasks, timer=timer
        )
        try:
            asyncio.run(loop.train())
        except KeyboardInterrupt:
            loop.save_interrupted()
            raise
        with timer.phase("saving"):
            write_checkpoint(trainer.model, final, tokenizer=start)
    training = {
        "parameters": num_parameters(trainer.model),
        "trained_parameters": num_parameters(trainer.model, trainable=True),
        **metrics_summary(folder.metrics),
    }
    return Trained(checkpoint=final, training=training, cost=account(sessions(folder.path)))


def _grpo_trainer(config: GrpoConfig, start: Path, folder: RunFolder) -> GRPOTrainer:
    base = open_model(start, config.local)
    record_engine(base, folder.record)
    model = trainable(base, config.local, seed=config.seed)
    reference = None
    if config.algo.kl_coef and not config.local.lora.rank:
        reference = open_model(start, config.local)
        reference.requires_grad_(False)
    return GRPOTrainer(
        model,
        config.algo,
        config.train,
        temperature=config.sampling.temperature,
        max_tokens_per_microbatch=config.local.max_tokens_per_microbatch,
        reference=reference,
    )
