"""The `local` backend: torch in this process, on a CPU or one GPU. What it trains with is in the other files of this package."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

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
from tau2rl.runs.checkpoints import FINAL, INITIAL, last_step
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import Progress
from tau2rl.runs.timing import sessions, timed
from tau2rl.train.engine.proof import record_engine
from tau2rl.train.grpo import GRPO, Rollouts
from tau2rl.train.metrics import metrics_summary
from tau2rl.train.model import num_parameters, open_model, prepare_machine, trainable, write_checkpoint
from tau2rl.train.sft import SFT, account_of, split_rows
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
            training = SFT(config, folder, progress, timer).train(model, rows, start)
        with timer.phase("saving"):
            write_checkpoint(model, final, tokenizer=start)
    return Trained(checkpoint=final, training=training, cost=account(sessions(folder.path)), rows=account_of(encoded, rows))


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
