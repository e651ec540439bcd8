"""TRL's side of `training.py`: its trainers' own losses, optimiser and sampling, on given rows. Needs `trl==1.16.*`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from training_data import GROUP, NEW, OPTIM, TURNS, Contender, Data, heard
from transformers import AutoModelForCausalLM, AutoTokenizer

from tau2rl.config import GrpoTrainConfig
from tau2rl.train.trainer import ScoredTrajectory

OPTIMIZER = GrpoTrainConfig(steps=1000, **OPTIM)  # as our side of the comparison has it
PLAIN: dict[str, Any] = {
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "learning_rate": OPTIMIZER.lr,
    "weight_decay": OPTIMIZER.weight_decay,
    "max_grad_norm": OPTIMIZER.max_grad_norm,
}


def contenders(data: Data, folder: Path) -> list[Contender]:
    """Every way of each that is sane on a CPU; liger's kernels and flash attention need a GPU."""
    reinforced = [c for what, batch in data.groups.items() for c in reinforcement(what, batch, data, folder)]
    return [*fine_tuning(data, folder), *reinforced, *generation(data, folder)]


def fine_tuning(data: Data, folder: Path) -> list[Contender]:
    """The whole batch padded; in parts of similar length; in one line without padding."""
    found: list[Contender] = []
    sizes = [len(s.token_ids) for s in data.samples]
    by_length = sorted(range(len(sizes)), key=lambda i: sizes[i])
    for how, parts, options in (
        ("padded", [list(range(len(sizes)))], {}),
        ("by length, 4 a pass", [by_length[i : i + 4] for i in range(0, len(sizes), 4)], {}),
        ("by length, 2 a pass", [by_length[i : i + 2] for i in range(0, len(sizes), 2)], {}),
        ("padding-free, 4 a pass", [by_length[i : i + 4] for i in range(0, len(sizes), 4)], {"padding_free": True}),
    ):
        args = trl.SFTConfig(output_dir=str(folder), assistant_only_loss=True, max_length=None, **PLAIN, **options)
        trainer: Any = trl.SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(data.checkpoint, dtype=torch.float32),
            args=args,
            train_dataset=Dataset.from_list(data.rows),
            processing_class=AutoTokenizer.from_pretrained(data.checkpoint),
        )
        run, padding = _sft_step(trainer, parts), _padding(sizes, parts, options)
        found.append(Contender(what="SFT", who="TRL", how=how, run=run, tokens=sum(sizes), padding=padding))
    return found


def _sft_step(trainer: Any, parts: Sequence[Sequence[int]]) -> Callable[[], None]:
    trainer.create_optimizer()
    examples = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    count = torch.tensor(sum(sum(label != -100 for label in e["labels"]) for e in examples))

    def run() -> None:
        trainer.model.train()
        trainer.optimizer.zero_grad(set_to_none=True)
        for part in parts:
            batch = trainer.data_collator([examples[i] for i in part])
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=count).backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), OPTIMIZER.max_grad_norm)
        trainer.optimizer.step()

    return run


def _padding(sizes: Sequence[int], parts: Sequence[Sequence[int]], options: dict[str, Any]) -> float:
    if options.get("padding_free"):
        return 0.0
    return 1.0 - sum(sizes) / sum(len(part) * max(sizes[i] for i in part) for part in parts)


def reinforcement(what: str, batch: Sequence[ScoredTrajectory], data: Data, folder: Path) -> list[Contender]:
    """All attempts in one pass; a group a pass; attempts of similar length."""
    attempts = [t.samples[0] for t in batch]
    sizes = [len(s.token_ids) for s in attempts]
    found: list[Contender] = []
    everything = list(range(len(sizes)))
    by_length = sorted(everything, key=lambda i: sizes[i])
    trainer = _grpo(data, folder)
    for how, order, size in (
        ("padded", everything, len(sizes)),
        ("a group a pass", everything, GROUP),
        ("by length, 16 a pass", by_length, 16),
        ("by length, 8 a pass", by_length, 8),
    ):
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        batches = [_batch([batch[i] for i in part], pad=trainer.processing_class.pad_token_id) for part in parts]
        padding = 1.0 - sum(sizes) / sum(b["prompt_ids"].numel() + b["completion_ids"].numel() for b in batches)
        run = _grpo_step(trainer, batches, sampled=sum(sum(a.loss_mask) for a in attempts))
        found.append(Contender(what=what, who="TRL", how=how, run=run, tokens=sum(sizes), padding=padding))
    return found


def _grpo(data: Data, folder: Path) -> Any:
    """TRL's trainer; it plays nothing here, so its data and reward are dummies."""
    args = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=GROUP,
        num_generations=GROUP,
        max_completion_length=NEW,
        disable_dropout=False,
        beta=0.0,
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        generation_kwargs={"min_new_tokens": NEW},  # as many tokens as ours
        **PLAIN,
    )
    trainer: Any = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(data.checkpoint, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["Hello."] * GROUP}),
        processing_class=AutoTokenizer.from_pretrained(data.checkpoint),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    return trainer


def _grpo_step(trainer: Any, batches: Sequence[dict[str, Any]], *, sampled: int) -> Callable[[], None]:
    """On-policy: TRL computes no older log-probabilities then, and neither do we."""

    def run() -> None:
        trainer.model.train()
        trainer.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            inputs = {**batch, "num_items_in_batch": torch.tensor(float(sampled))}
            trainer.compute_loss(trainer.model, inputs).backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), OPTIMIZER.max_grad_norm)
        trainer.optimizer.step()

    return run


def _batch(batch: Sequence[ScoredTrajectory], *, pad: int) -> dict[str, Any]:
    """As TRL has it: prompts padded on the left, what follows on the right, `tool_mask` on sampled tokens."""
    starts = [t.samples[0].turn_spans[0][0] for t in batch]
    ids = [torch.tensor(t.samples[0].token_ids) for t in batch]
    masks = [torch.tensor(t.samples[0].loss_mask) for t in batch]
    prompts = [x[:s] for x, s in zip(ids, starts, strict=True)]
    answers = [x[s:] for x, s in zip(ids, starts, strict=True)]

    def padded(parts: Sequence[torch.Tensor], value: int, side: str) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=value, padding_side=side)

    return {
        "prompt_ids": padded(prompts, pad, "left"),
        "prompt_mask": padded([torch.ones_like(x) for x in prompts], 0, "left"),
        "completion_ids": padded(answers, pad, "right"),
        "completion_mask": padded([torch.ones_like(x) for x in answers], 0, "right"),
        "tool_mask": padded([m[s:] for m, s in zip(masks, starts, strict=True)], 0, "right"),
        "advantages": torch.tensor([t.advantages[0] for t in batch]),
    }


def generation(data: Data, folder: Path) -> list[Contender]:
    """`GRPOTrainer`'s own sampling: every turn is a call with the whole conversation."""
    trainer = _grpo(data, folder)

    def talk(turns: int) -> None:
        trainer.model.eval()
        texts, rng = [list(p) for p in data.prompts], random.Random(0)
        for _ in range(turns):
            sampled, _ = trainer._generate_single_turn(texts, None, {}, GROUP)
            for text, new in zip(texts, sampled, strict=True):
                assert len(new) == NEW
                text += [*new, *heard(rng)]

    return [
        Contender(what=what, who="TRL", run=lambda turns=turns: talk(turns), tokens=len(data.prompts) * NEW * turns)
        for what, turns in (("generation", 1), (f"generation, {TURNS} turns", TURNS))
    ]
