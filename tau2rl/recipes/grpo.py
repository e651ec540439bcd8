"""`tau2rl grpo`: play groups, compare the attempts within each, move the weights, play on with the new ones."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tau2rl.chat import fingerprint, make_codec
from tau2rl.config import GrpoConfig, dump
from tau2rl.data.task_sampling import outcome as outcome_of
from tau2rl.env.tasks import refuse_held_out, refuse_leak, select
from tau2rl.env.tau2_env import warm_up
from tau2rl.env.user_simulator import bench_identity, check_key
from tau2rl.recipes.rounds import Player, Round, Tasks, first_index
from tau2rl.report.cost import account
from tau2rl.reward.presets import spec_from
from tau2rl.rollout.players import record_of
from tau2rl.rollout.runner import Watched, plan
from tau2rl.runs.checkpoints import FINAL, STATE, exports
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.hashes import described_checkpoint
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.provenance import environment
from tau2rl.runs.reports import Result
from tau2rl.runs.secrets import Redactor, key_variables
from tau2rl.runs.timing import PhaseTimer, sessions, timed
from tau2rl.runs.tracking import Curves, rewind_episodes
from tau2rl.runs.validation import write_validation
from tau2rl.train.hyper import grpo_spec, policy_of
from tau2rl.train.model import num_parameters, open_model, trainable, write_checkpoint
from tau2rl.train.policy import LocalPolicy
from tau2rl.train.trainer import GRPOTrainer, Update
from tau2rl.types import TaskRef, derive_seed

log = logging.getLogger(__name__)
ENDS = 5  # steps at either end whose mean the report shows


def run(config: GrpoConfig, folder: RunFolder, progress: Progress) -> Result:
    """Learn, or go on with it. Raises UserError for what cannot be run as asked, RunIncomplete when the world stays broken."""
    progress(ProgressEvent(done=0, total=config.train.steps, unit="steps", note="loading tasks and model"))
    tasks = select(config.tasks)
    if not config.allow_held_out:
        refuse_held_out(tasks)
    selection = select(config.val) if config.train.val_every else []
    refuse_leak(tasks, selection)
    if config.user.kind == "llm":
        check_key(config.user)
    start = Path(config.model.init).expanduser()
    parent = described_checkpoint(start)
    codec = make_codec(config.chat)
    warm_up(config.tasks.domains, codec)
    bench = bench_identity(config.tasks.domains, config.user)
    stands_on = environment(config, bench, {"chat": fingerprint(codec), "parent": parent["sha256"]})
    folder.write_environment(stands_on)
    spec = spec_from(config.reward, max_turns=config.limits.max_turns, domains=config.tasks.domains)
    final = folder.checkpoints / FINAL
    with timed(folder) as clock:
        with clock.phase("loading"):
            trainer = _trainer(config, start)
        learner = _Learner(
            config=config,
            folder=folder,
            progress=progress,
            trainer=trainer,
            player=Player(config=config, codec=codec, spec=spec, folder=folder),
            tasks=Tasks(refs=tasks, config=config),
            selection=selection,
            clock=clock,
        )
        asyncio.run(learner.learn())
        with clock.phase("saving"):
            write_checkpoint(trainer.model, final, tokenizer=start)
    report = {
        "stage": "grpo",
        "digest": stands_on["digest"],
        "incomplete": False,
        "inputs": {"parent": parent},
        "outputs": {"checkpoint": described_checkpoint(final)},
        "tasks": len(tasks),
        "training": {
            "parameters": num_parameters(trainer.model),
            "trained_parameters": num_parameters(trainer.model, trainable=True),
            **summary(folder.metrics),
        },
        "cost": account(sessions(folder.path)),
    }
    folder.write_report(report)
    return Result(report=report, complete=True)


def _trainer(config: GrpoConfig, start: Path) -> GRPOTrainer:
    model = trainable(open_model(start, config.local), config.local, seed=config.seed)
    reference = None
    if config.algo.kl_coef and not config.local.lora.rank:
        reference = open_model(start, config.local)
        reference.requires_grad_(False)
    return GRPOTrainer(model, grpo_spec(config), reference=reference)


@dataclass(slots=True, kw_only=True)
class _Learner:
    """The loop over steps, and what it needs to go on after an interruption."""

    config: GrpoConfig
    folder: RunFolder
    progress: Progress
    trainer: GRPOTrainer
    player: Player
    tasks: Tasks
    selection: Sequence[TaskRef]
    clock: PhaseTimer
    began: float = field(default_factory=time.monotonic)

    async def learn(self) -> None:
        """From the saved state, or the start, to the last step."""
        config, clock = self.config, self.clock
        clock.played = self.player.costs
        with clock.phase("loading"):
            done = self._restore()
        rewind_episodes(self.folder.episodes, before=first_index(config, done + 1))
        self.progress(ProgressEvent(done=done, total=config.train.steps, unit="steps"))
        policy = policy_of(self.trainer.model, config.sampling, config.local, config.chat, self.player.codec)
        with Curves(config, config.tracking, self.folder) as curves:
            async with policy:
                for step in range(done + 1, config.train.steps + 1):
                    numbers = await self._step(step, policy)
                    curves.write(step, numbers)
                    self._tell(step, numbers)
                    with clock.phase("saving"):
                        if step % config.train.save_every == 0 or step == config.train.steps:
                            self._save(step)
                        if exports(step, config.train.export_every):
                            self._export(step)
                    clock.write()

    async def _step(self, step: int, policy: LocalPolicy) -> dict[str, float | None]:
        began, cpu = time.monotonic(), time.process_time()
        watched = Watched(policy)
        played = await self.player.round(step, self.tasks, watched)
        rolled = time.monotonic()
        self.clock.add("sampling", watched.seconds)
        self.clock.add("playing", rolled - began - watched.seconds)
        with self.clock.phase("update"):
            update = self.trainer.update(played.judged())
            self.trainer.model.eval()  # sampling is without dropout
            await policy.refresh()
        self.clock.trained += update.tokens if update else 0
        numbers = {**played.numbers(), **_numbers(update)}
        numbers |= _speed(played, update, rollout=rolled - began, train=time.monotonic() - rolled)
        if self.config.train.val_every and step % self.config.train.val_every == 0:
            with self.clock.phase("validation"):
                numbers["val/pass@1"] = await self._look(step, policy)
        return {**numbers, "seconds/cpu": time.process_time() - cpu}

    async def _look(self, step: int, policy: LocalPolicy) -> float | None:
        """The share of the selection tasks that is solved: the same attempts at every look. Its episodes are kept."""
        config = self.config
        attempts = plan(self.selection, num_samples=config.val.num_samples, seed=derive_seed(config.seed, "select"))
        looking = policy_of_looks(policy, config)
        async with aclosing(self.player.play(attempts, looking)) as outcomes:
            records = [record_of(outcome, config, self.player.spec) async for outcome in outcomes]
        write_validation(self.folder.path, step, records, redactor=Redactor(key_variables(dump(config))))
        solved = [won for record in records if (won := outcome_of(record.episode)) is not None]
        return sum(solved) / len(solved) if solved else None

    def _save(self, step: int) -> None:
        self.trainer.save(self.folder.checkpoints / STATE, step=step, tasks=self.tasks.to_json())

    def _restore(self) -> int:
        """The steps that are done."""
        state = self.trainer.restore(self.folder.checkpoints / STATE)
        if state is None:
            return 0
        self.tasks.restore(state["tasks"])
        log.info("goes on behind step %d", state["step"])
        return int(state["step"])

    def _export(self, step: int) -> None:
        write_checkpoint(
            self.trainer.model, self.folder.checkpoints / f"step_{step:05}", tokenizer=Path(self.config.model.init).expanduser()
        )

    def _tell(self, step: int, numbers: dict[str, float | None]) -> None:
        reward = numbers["reward/mean"]
        shown = "-" if reward is None else f"{reward:.3f}"
        log.info("step %d: reward %s, %s of %s groups useful", step, shown, numbers["groups/useful"], numbers["groups/tried"])
        seconds = time.monotonic() - self.began
        self.progress(
            ProgressEvent(done=step, total=self.config.train.steps, seconds=seconds, unit="steps", note=f"reward {shown}")
        )


def policy_of_looks(policy: LocalPolicy, config: GrpoConfig) -> LocalPolicy:
    """The policy as the selection tasks are played with it."""
    temperature = config.val.temperature
    return policy if temperature is None else policy.at(temperature)


def _numbers(update: Update | None) -> dict[str, float | None]:
    """The trainer's page; None throughout when no group taught anything."""
    if update is None:
        names = [name for name in Update.__dataclass_fields__ if name != "mismatch"]
        return {f"train/{name}": None for name in names} | dict.fromkeys(MISMATCH)
    values = asdict(update)
    apart = values.pop("mismatch")
    return {f"train/{name}": value for name, value in values.items()} | {
        f"mismatch/{name}": value for name, value in apart.items()
    }


MISMATCH = ("mismatch/mean_abs", "mismatch/max_abs", "mismatch/k3", "mismatch/effective_share")


def _speed(played: Round, update: Update | None, *, rollout: float, train: float) -> dict[str, float | None]:
    sampled = played.numbers()["tokens/sampled"] or 0
    return {
        "seconds/rollout": rollout,
        "seconds/train": train,
        "tokens_per_second/rollout": sampled / rollout if rollout else None,
        "tokens_per_second/train": update.tokens / train if update and train else None,
    }


def summary(metrics: Path) -> dict[str, Any]:
    """The whole run, however often it was interrupted, from its curves."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]

    def mean(part: Sequence[dict[str, Any]], name: str) -> float | None:
        values = [float(line[name]) for line in part if line.get(name) is not None]
        return sum(values) / len(values) if values else None

    apart = [float(line["mismatch/max_abs"]) for line in lines if line["mismatch/max_abs"] is not None]
    return {
        "steps": len(lines),
        "reward_first": mean(lines[:ENDS], "reward/mean"),
        "reward_last": mean(lines[-ENDS:], "reward/mean"),
        "useful_groups": sum(int(line["groups/useful"]) for line in lines),
        "tried_groups": sum(int(line["groups/tried"]) for line in lines),
        "failed_episodes": sum(int(line["episodes/failed"]) for line in lines),
        "mismatch_max_abs": max(apart, default=None),
        "rollout_tokens_per_second": mean(lines, "tokens_per_second/rollout"),
        "train_tokens_per_second": mean(lines, "tokens_per_second/train"),
        "padding_share": mean(lines, "train/padding_share"),
        "shared_share": mean(lines, "train/shared_share"),
        "validation": {line["step"]: line["val/pass@1"] for line in lines if line.get("val/pass@1") is not None},
    }
