"""A backend of your own: supervised training in thirty lines of torch, one row a step.

    backend: "examples.plain_sft:PlainSft"
    model: {init: outputs/sft/default/checkpoints/final}
    data: {files: [outputs/seed/default/rows.jsonl]}

Settings, checks, provenance, report and what follows in a pipeline stay those of `tau2rl sft`.
"""

from __future__ import annotations

import json
from itertools import cycle, islice
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tau2rl import Issue, Plan, Progress, ProgressEvent, RunFolder, Trained, TrainingConfig


class PlainSft:
    """Fits by its methods (`tau2rl.Backend`); made without arguments, once for each training."""

    def plan(self, config: TrainingConfig, *, probe: bool) -> Plan:
        """What speaks against a start; with `probe` this machine may be asked."""
        wrong = Issue(kind="error", message="`PlainSft` knows no reinforcement learning", hint="`tau2rl sft`")
        return Plan(issues=() if config.stage == "sft" else (wrong,))

    def start(self, config: TrainingConfig, folder: RunFolder) -> Path:
        """The checkpoint from which it starts; its hash becomes part of what the run stands on."""
        return Path(config.model.init)

    def train(self, config: TrainingConfig, folder: RunFolder, progress: Progress) -> Trained:
        """Train on the rows' own tokens, as they were sampled: `tau2rl seed --protocol native --tokenizer CHECKPOINT`."""
        assert config.stage == "sft"  # `plan` refuses everything else
        torch.manual_seed(config.seed)
        tokenizer = AutoTokenizer.from_pretrained(config.model.init)
        model = AutoModelForCausalLM.from_pretrained(config.model.init, dtype=torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.train.lr, weight_decay=config.train.weight_decay)
        rows = [json.loads(line) for file in config.data.files for line in file.read_text("utf-8").splitlines()]
        loss = torch.zeros(())
        for step, row in enumerate(islice(cycle(rows), config.train.steps), start=1):
            ids = torch.tensor([row["token_ids"]])  # [1, num_tokens]
            loss = model(input_ids=ids, labels=ids.where(torch.tensor([row["loss_mask"]]) == 1, -100)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            progress(ProgressEvent(done=step, total=config.train.steps, unit="steps"))
        final = folder.checkpoints / "final"
        model.save_pretrained(final)
        tokenizer.save_pretrained(final)
        return Trained(checkpoint=final, training={"steps": config.train.steps, "loss": loss.item()}, cost=None)

    def checkpoint(self, run: Path, step: int) -> Path | None:
        """Where the model behind a step is: only the last one is kept."""
        final = run / "checkpoints" / "final"
        done = json.loads((run / "report.json").read_text("utf-8"))["training"]["steps"] if final.is_dir() else None
        return final if step == done else None
