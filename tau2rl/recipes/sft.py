"""`tau2rl sft`: supervised training on whole conversations; data in, a checkpoint and an account of every row out."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tau2rl.chat.tokenizers import load_tokenizer
from tau2rl.config import SftConfig
from tau2rl.data.encoding import Encoded, encode_rows
from tau2rl.data.rows import read_rows
from tau2rl.errors import UserError
from tau2rl.report.cost import account
from tau2rl.runs.checkpoints import FINAL, INITIAL, STATE, exports
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.hashes import described, described_checkpoint
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.provenance import environment
from tau2rl.runs.reports import Result
from tau2rl.runs.timing import PhaseTimer, sessions, timed
from tau2rl.runs.tracking import Curves
from tau2rl.train.hyper import sft_spec
from tau2rl.train.model import create_tiny, num_parameters, open_model, prepare_machine, trainable, write_checkpoint
from tau2rl.train.sft import SFTResult, SFTStep, mean_loss, train
from tau2rl.types import TrainingSample

log = logging.getLogger(__name__)
DROPPED_SHOWN = 20  # rows that the report names; it counts all of them


def run(config: SftConfig, folder: RunFolder, progress: Progress) -> Result:
    """Train, or go on with it. Raises UserError for what cannot be run as asked."""
    if not config.data.files:
        raise UserError("no rows to train on", hint="`--data FILE` or `data.files`: JSONL rows, as `tau2rl seed` writes them")
    progress(ProgressEvent(done=0, total=config.train.steps, unit="steps", note="reading rows"))
    data = described(config.data.files)
    prepare_machine(config.local)
    initial = _initial(config, folder)
    parent = described_checkpoint(initial)
    stands_on = environment(config, {}, {"data": [d["sha256"] for d in data], "parent": parent["sha256"]})
    folder.write_environment(stands_on)
    encoded = encode_rows(read_rows(config.data), load_tokenizer(str(initial)), max_tokens=config.data.max_tokens)
    rows = split_off(encoded, share=config.data.val_fraction)
    log.info("%d rows to train on, %d held out, %d left out", len(rows.train), len(rows.held_out), len(encoded.dropped))
    log.info("rows: exact %d, rendered %d", encoded.exact, len(encoded.samples) - encoded.exact)
    with timed(folder) as clock:
        trained = _train(config, folder, progress, initial, rows, clock)
    report = {
        "stage": "sft",
        "digest": stands_on["digest"],
        "incomplete": False,
        "inputs": {"data": data, "parent": parent},
        "outputs": {"checkpoint": described_checkpoint(folder.checkpoints / FINAL)},
        "rows": _account(encoded, rows),
        "training": trained,
        "cost": account(sessions(folder.path)),
    }
    folder.write_report(report)
    return Result(report=report, complete=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What is trained on and what is only looked at."""

    train: list[TrainingSample]
    held_out: list[TrainingSample]


def split_off(encoded: Encoded, *, share: float) -> Split:
    """Hold out a share of the rows, by a hash of their ids: attempts at one task (`mock/a#0`, `mock/a#1`) stay together."""
    held_out = [share > 0 and _draw(name.rpartition("#")[0] or name) < share for name in encoded.ids]
    pairs = list(zip(encoded.samples, held_out, strict=True))
    return Split(train=[sample for sample, out in pairs if not out], held_out=[sample for sample, out in pairs if out])


def _initial(config: SftConfig, folder: RunFolder) -> Path:
    """The checkpoint that training starts from; a tiny one is made on the first start and kept."""
    if config.model.init != "tiny":
        return Path(config.model.init).expanduser()
    initial = folder.checkpoints / INITIAL
    if not initial.exists():
        create_tiny(read_rows(config.data), config.local.shape, initial, seed=config.seed)
    return initial


def _train(
    config: SftConfig, folder: RunFolder, progress: Progress, initial: Path, rows: Split, clock: PhaseTimer
) -> dict[str, Any]:
    """Train and write the final checkpoint; what the report says of it."""
    with clock.phase("loading"):
        model = trainable(open_model(initial, config.local), config.local, seed=config.seed)
    if not rows.train and config.data.allow_empty:
        log.warning("no row is left: the model is handed on as it is")
        with clock.phase("saving"):
            write_checkpoint(model, folder.checkpoints / FINAL, tokenizer=initial)
        return {"steps": 0, "reason": "no row is left"}

    def held_out_loss() -> float | None:
        if not rows.held_out:
            return None
        with clock.phase("validation"):
            return mean_loss(model, rows.held_out, max_tokens_per_microbatch=config.local.max_tokens_per_microbatch)

    before = held_out_loss()
    with Curves(config, config.tracking, folder) as curves:
        log_book = _LogBook(config, curves, progress)

        def on_step(step: SFTStep) -> None:
            log_book.add(step)
            clock.trained = log_book.tokens
            clock.add("update", step.seconds)  # with the step's own look and save
            if exports(step.step, config.train.export_every):
                with clock.phase("saving"):
                    write_checkpoint(model, folder.checkpoints / f"step_{step.step:05}", tokenizer=initial)
            if exports(step.step, config.train.save_every):
                clock.write()

        result = train(
            model, rows.train, sft_spec(config), held_out=rows.held_out, folder=folder.checkpoints / STATE, on_step=on_step
        )
    with clock.phase("saving"):
        write_checkpoint(model, folder.checkpoints / FINAL, tokenizer=initial)
    return {
        **_told(result),
        "held_out_loss_before": before,
        "held_out_loss_after": held_out_loss(),
        "parameters": num_parameters(model),
        "trained_parameters": num_parameters(model, trainable=True),
        "tokens": log_book.tokens,
        "tokens_per_second": log_book.tokens / log_book.seconds if log_book.seconds else None,
        "padding_share": log_book.padding / log_book.tokens if log_book.tokens else None,
        "shared_share": log_book.shared / log_book.tokens if log_book.tokens else None,
    }


class _LogBook:
    """Writes every step down, and counts what this start did."""

    def __init__(self, config: SftConfig, curves: Curves, progress: Progress) -> None:
        self._total = config.train.steps
        self._curves = curves
        self._progress = progress
        self._began = time.monotonic()
        self.tokens = 0
        self.seconds = 0.0
        self.padding = self.shared = 0.0  # shares, weighted by tokens

    def add(self, step: SFTStep) -> None:
        self._curves.write(step.step, {k: v for k, v in asdict(step).items() if k != "step"})
        self.tokens += step.tokens
        self.seconds += step.seconds
        self.padding += step.tokens * step.padding_share
        self.shared += step.tokens * step.shared_share
        self._progress(
            ProgressEvent(
                done=step.step,
                total=self._total,
                tokens=self.tokens,
                seconds=time.monotonic() - self._began,
                unit="steps",
                note=f"loss {step.loss:.3f}",
            )
        )


def _told(result: SFTResult) -> dict[str, Any]:
    return {**asdict(result), "loss": result.loss if math.isfinite(result.loss) else None}  # nan: there was no step left


def _account(encoded: Encoded, rows: Split) -> dict[str, Any]:
    """Where every row went."""
    return {
        "used": len(rows.train),
        "held_out": len(rows.held_out),
        "dropped": len(encoded.dropped),
        "exact": encoded.exact,  # of used and held out: trained on as they were sampled
        "rendered": len(encoded.samples) - encoded.exact,  # written anew from their messages
        "reasons": dict(Counter(d.reason for d in encoded.dropped).most_common()),
        "dropped_rows": [asdict(d) for d in encoded.dropped[:DROPPED_SHOWN]],
        "tokens": sum(len(s.token_ids) for s in rows.train),
        "assistant_tokens": sum(sum(s.loss_mask) for s in rows.train),
        "longest": max((len(s.token_ids) for s in encoded.samples), default=0),
    }


def _draw(name: str) -> float:
    """A number in [0, 1) that only the name decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
