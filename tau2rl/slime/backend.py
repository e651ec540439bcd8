"""The `slime` backend: check everything, write what slime reads, let slime train as a child process, collect what it left.

This process is the command of the Ray job. slime's `train.py` is its child and the driver of the cluster: its actors belong to
the same job. Nothing here needs a GPU, and nothing of slime is imported.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tau2rl import settings
from tau2rl.backend import Plan, Trained, TrainingConfig
from tau2rl.chat.tokenizers import load_tokenizer
from tau2rl.config import GrpoConfig, SftConfig, dump
from tau2rl.data.encoding import warn_of_long_rows
from tau2rl.data.rows import read_rows
from tau2rl.env.tasks import select, write_prompts
from tau2rl.errors import UserError
from tau2rl.report.cost import account
from tau2rl.runs.checkpoints import begins_anew, refuse_code
from tau2rl.runs.files import write_json
from tau2rl.runs.folder import RunFolder, run_path
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.secrets import Redactor, key_variables
from tau2rl.runs.timing import sessions, timed
from tau2rl.runs.trackers import rewind, rewind_episodes, trackers_of
from tau2rl.slime import rollout_log
from tau2rl.slime.argv import build_argv
from tau2rl.slime.checkpoints import attempts_done, point_final, read_saves, refuse_megatron, slime_exports, steps_done
from tau2rl.slime.layout import layout_of
from tau2rl.slime.model import read_shape
from tau2rl.slime.preflight import issues_of, read_machine, validate
from tau2rl.slime.process import run_child, script, shared_variables, slime_environment, slime_variables, tracker_login
from tau2rl.slime.run_context import SlimeRun, absolute, served_user, write_files
from tau2rl.slime.sft_data import longest_row, write_conversations
from tau2rl.slime.train_log import TrainLog, slime_summary

log = logging.getLogger(__name__)
USER_IN_THE_JOB = "http://127.0.0.1/v1"  # in a run's identity; the address of an engine is known only in the job
LOG = "slime.log"  # below `logs/session_N`


class SlimeBackend:
    """Megatron trains, SGLang samples, on a Ray cluster; see `tau2rl.backend.Backend`."""

    def plan(self, config: TrainingConfig, *, probe: bool) -> Plan:
        """slime's command line, who is on which GPU, what speaks against it. Raises UserError for settings it cannot honor.

        Without the checkpoint on this machine, the options that build the model are left out.
        """
        config = absolute(config)
        run = _run_of(config, run_path(config).absolute(), needs_shape=probe)
        argv = ("python3", str(script(config)), *build_argv(config, run))
        machine = read_machine(config, run.folder) if probe else None
        recorded = {"root": str(config.slime.root), "commit": machine.slime_commit} if machine else {}
        return Plan(
            argv=argv,
            layout=tuple(layout_of(config).lines()),
            issues=tuple(issues_of(config, run.shape, machine)),
            recorded={"slime": recorded} if recorded else {},
            user=served_user(config, USER_IN_THE_JOB) if isinstance(config, GrpoConfig) else None,
        )

    def start(self, config: TrainingConfig, folder: RunFolder) -> Path:
        """The checkpoint that training starts from, as the settings name it."""
        return Path(config.model.init).expanduser()

    def train(self, config: TrainingConfig, folder: RunFolder, progress: Progress) -> Trained:
        """Train, or go on behind the last save. Raises UserError before anything starts."""
        config = absolute(config)
        run = _run_of(config, folder.path, needs_shape=True)
        done = steps_done(read_saves(run.save), draws_tasks=isinstance(config, GrpoConfig))
        if not done:
            begins_anew(folder, save_every=config.train.save_every)
        rows = None
        if isinstance(config, SftConfig):
            rows = _write_rows(config, run)
        else:
            _write_tasks(config, run)
        write_files(config, run)
        interrupted = "" if done >= config.train.steps else _run_slime(config, run, folder, progress, done)
        found = slime_exports(folder.checkpoints)
        last = max(found, default=0)
        if not interrupted and last != config.train.steps:
            interrupted = (
                f"slime ended well, but left no whole Hugging Face checkpoint of step {config.train.steps} (last: step {last})"
            )
        checkpoint = found.get(last)
        if checkpoint is not None and not interrupted:
            checkpoint = point_final(folder.checkpoints, checkpoint)
        return Trained(
            checkpoint=checkpoint,
            training=slime_summary(folder.metrics),
            cost=cost_of(folder.path),
            rows=rows,
            interrupted=interrupted,
        )

    def checkpoint(self, run: Path, step: int) -> Path | None:
        """The whole Hugging Face directory beside the save behind a step; slime's `hf/19` is step 20."""
        return slime_exports(run / "checkpoints").get(step)


def cost_of(run: Path) -> dict[str, Any]:
    """The `cost` of a run: what the rollout process says of itself and its episodes, in the wall time of slime's jobs.

    Megatron's processes say how long they trained, and nothing of their CPU time.
    """
    own, rollouts = sessions(run), sessions(run, rollout_log.FILE)
    if rollouts:
        return account(own, rollouts=rollouts)
    return account([replace(session, cpu_seconds=None) for session in own])  # this process only waited


def _run_of(config: TrainingConfig, folder: Path, *, needs_shape: bool) -> SlimeRun:
    validate(config)
    start = Path(config.model.init)
    refuse_megatron(start)
    if isinstance(config, GrpoConfig) and config.slime.user.gpus and config.slime.user.checkpoint:
        refuse_code(config.slime.user.checkpoint, trusting=True)  # SGLang serves it
    here = needs_shape or (start / "config.json").exists()
    return SlimeRun(folder=folder, shape=read_shape(start) if here else None)


def _write_tasks(config: GrpoConfig, run: SlimeRun) -> None:
    """Write the prompts; whether these tasks may be trained on is the recipe's to say."""
    run.own.mkdir(parents=True, exist_ok=True)
    write_prompts(select(config.tasks), run.prompts)
    if config.train.val_every:
        write_prompts(select(config.val), run.eval_prompts)


def _write_rows(config: SftConfig, run: SlimeRun) -> dict[str, Any]:
    """Write the conversations; what became of every row. Raises UserError when there are too few for one step."""
    counts = write_conversations(
        read_rows(config.data), load_tokenizer(config.model.init), run.prompts, max_tokens=longest_row(config)
    )
    told = counts.to_json()
    log.info("%d rows to train on, %d left out", counts.used, len(counts.dropped))
    warn_of_long_rows(counts.dropped, max_tokens=longest_row(config))
    if counts.used < config.train.batch_size:
        raise UserError(
            f"{counts.used} rows can be trained on, fewer than `train.batch_size` = {config.train.batch_size}",
            hint=", ".join(f"{count} rows are left out: {why}" for why, count in told["reasons"].items())
            or "`data.files` names the rows",
        )
    return told


def _run_slime(config: TrainingConfig, run: SlimeRun, folder: RunFolder, progress: Progress, done: int) -> str:
    """Run slime to its end; why it ended early, in words for people, "" where it did not."""
    redactor = Redactor(key_variables(dump(config)))
    command = [settings.python(), str(script(config)), *build_argv(config, run)]
    redactor.refuse({"argv": command})
    write_json(run.own / "command.json", {"command": command})
    rewind(folder.metrics, before=done + 1)
    if isinstance(config, GrpoConfig):
        rewind_episodes(folder.episodes, before=attempts_done(run.save, done))
    progress(ProgressEvent(done=done, total=config.train.steps, unit="steps", note="slime starts"))
    log.info("slime begins behind step %d of %d", done, config.train.steps)
    present = settings.child_environment()
    key = settings.secret("WANDB_API_KEY") if config.tracking.wandb == "online" else None
    lines = TrainLog(
        file=folder.logs / LOG,
        metrics=folder.metrics,
        steps=config.train.steps,
        minibatches=config.train.num_minibatches if isinstance(config, GrpoConfig) else 1,
        clean=redactor.text,
        say=sys.stderr,
        progress=progress,
        trackers=trackers_of(folder, config, process="train"),
    )
    with lines, timed(folder) as timer, tracker_login(key, base_url=present.get("WANDB_BASE_URL")) as login:
        shared = shared_variables(present, {**slime_variables(config), **login})
        redactor.refuse(shared)
        try:
            code = run_child(command, environment=slime_environment(present, shared), on_line=lines, cwd=Path.cwd())
        finally:
            timer.add("update", lines.train_seconds)
    log.info("slime ended with code %d", code)
    if code == 0:
        return ""
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    reason = lines.reason()
    return f"slime {how}{': ' + reason if reason else ''}\nits log: {folder.logs / LOG}"
