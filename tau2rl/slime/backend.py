"""`tau2rl sft` and `tau2rl grpo` on a cluster: check everything, write what slime reads, let slime train, collect what it left.

This process is the command of the Ray job. slime's `train.py` is its child and the driver of the cluster: its actors belong to
the same job. Nothing here needs a GPU, and nothing of slime is imported.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tau2rl import settings
from tau2rl.chat import fingerprint, make_codec
from tau2rl.chat.tokenizers import load_tokenizer
from tau2rl.config import GrpoConfig, SftConfig, dump
from tau2rl.env.tasks import refuse_held_out, refuse_leak, select, write_prompts
from tau2rl.env.user_simulator import bench_identity, check_key
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.report.cost import account
from tau2rl.runs.files import write_json
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.hashes import described, described_checkpoint
from tau2rl.runs.progress import Progress, ProgressEvent
from tau2rl.runs.provenance import environment
from tau2rl.runs.reports import Result
from tau2rl.runs.secrets import Redactor, key_variables
from tau2rl.runs.timing import sessions, timed
from tau2rl.runs.tracking import rewind, rewind_episodes
from tau2rl.slime import job
from tau2rl.slime.argv import build_argv
from tau2rl.slime.checkpoints import attempts_done, exports, look, point_final, refuse_megatron, steps_done
from tau2rl.slime.job import SlimeRun, child_environment, cluster_size, shared_variables, tracker_login
from tau2rl.slime.machine import Machine, Problem, collect
from tau2rl.slime.model import read_shape
from tau2rl.slime.preflight import preflight
from tau2rl.slime.process import SlimeLog, run_child
from tau2rl.slime.rollout_log import FILE as ROLLOUTS
from tau2rl.slime.sft_data import longest_row, write_conversations

ENDS = 5  # steps at either end whose mean the report shows
# In the report -> in `metrics.jsonl`; slime's own names begin with `train/` (docs/cluster.md says what to watch).
CURVES = {"reward": "reward/mean", "success": "success", "loss": "train/loss", "mismatch": "train/train_rollout_logprob_abs_diff"}
COUNTS = {"useful_groups": "groups/useful", "failed_episodes": "episodes/failed", "sampled_tokens": "tokens/sampled"}


def summary(metrics: Path) -> dict[str, Any]:
    """The whole run, however often it was interrupted: a curve's ends, what was counted, the looks at the selection tasks."""
    steps = merged(metrics)
    lines = [steps[step] for step in sorted(steps) if any(name.startswith("train/") for name in steps[step])]
    told: dict[str, Any] = {"steps": len(lines)}
    for name, curve in CURVES.items():
        if any(line.get(curve) is not None for line in lines):
            told |= {f"{name}_first": _mean(lines[:ENDS], curve), f"{name}_last": _mean(lines[-ENDS:], curve)}
    for name, count in COUNTS.items():
        if any(line.get(count) is not None for line in lines):
            told[name] = int(sum(line.get(count) or 0 for line in lines))
    looks = {step: line["val/pass@1"] for step, line in sorted(steps.items()) if line.get("val/pass@1") is not None}
    return {**told, **({"validation": looks} if looks else {})}


def merged(metrics: Path) -> dict[int, dict[str, float]]:
    """Every number by step: the rollouts' own line, the optimizer's and those of looks are lines of one step."""
    steps: dict[int, dict[str, float]] = {}
    for text in metrics.read_text("utf-8").splitlines() if metrics.exists() else ():
        line: dict[str, Any] = json.loads(text)
        steps.setdefault(int(line.pop("step")), {}).update(line)
    return steps


def report_of(
    config: SftConfig | GrpoConfig,
    *,
    digest: str,
    inputs: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    made: Mapping[str, Any],
    training: Mapping[str, Any],
    cost: Mapping[str, Any],
    complete: bool,
) -> dict[str, Any]:
    """`report.json`, as a training in this process writes it. `made`: what became of rows, or how many tasks there were."""
    return {
        "stage": config.stage,
        "backend": "slime",
        "digest": digest,
        "incomplete": not complete,
        "inputs": dict(inputs),
        "outputs": {"checkpoint": dict(checkpoint)},
        **made,
        "training": dict(training),
        "cost": dict(cost),
    }


def cost_of(run: Path) -> dict[str, Any]:
    """The `cost` of a run: what the rollout process says of itself and its episodes, in the wall time of slime's jobs.

    Megatron's processes say how long they trained, and nothing of their CPU time.
    """
    own, rollouts = sessions(run), sessions(run, ROLLOUTS)
    if rollouts:
        return account(own, rollouts=rollouts)
    return account([replace(session, cpu_seconds=None) for session in own])  # this process only waited


def _mean(lines: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]
    return sum(values) / len(values) if values else None


log = logging.getLogger(__name__)
CUSTOMER_ELSEWHERE = "http://127.0.0.1/v1"  # in a run's identity; the address of an engine is known only in the job
LOG = "slime.log"  # below `logs/session_N`


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What was made before the start."""

    digest: str
    inputs: dict[str, Any]
    made: dict[str, Any]  # of rows or tasks, for the report


def run(config: SftConfig | GrpoConfig, folder: RunFolder, progress: Progress) -> Result:
    """Train, or go on with it. Raises UserError before anything starts, RunIncomplete when slime ends early."""
    steps = config.train.steps
    progress(ProgressEvent(done=0, total=steps, unit="steps", note="checking the request"))
    asked, config = config, job.absolute(config)
    refuse_megatron(Path(config.model.init))
    here = SlimeRun(folder=folder.path, shape=read_shape(Path(config.model.init)))
    done = steps_done(look(here.save), draws_tasks=isinstance(config, GrpoConfig))
    argv = build_argv(config, here)
    # What the settings themselves say is said before tasks and rows are read; warnings come with the machine's.
    _refuse([problem for problem in preflight(config) if problem.kind == "error"])
    made = _write_rows(config, here) if isinstance(config, SftConfig) else _write_tasks(config, here)
    gpus, cores = cluster_size(settings.child_environment())
    machine = collect(config, here, cluster_gpus=gpus, cluster_cores=cores)
    _refuse(preflight(config, machine))
    prepared = _stand_on(asked, config, made, machine, folder)
    job.write(config, here)
    ended = "" if done >= steps else _train(config, here, folder, progress, argv, done)
    return _conclude(config, folder, prepared, ended)


def _refuse(problems: Sequence[Problem]) -> None:
    """Tell all that is wrong at once. Raises UserError for what would not work."""
    errors = [problem for problem in problems if problem.kind == "error"]
    if errors:
        hints = dict.fromkeys(problem.hint for problem in errors if problem.hint)
        raise UserError("\n".join(problem.message for problem in errors), hint="; ".join(hints))
    for problem in problems:
        log.warning("%s (%s)", problem.message, problem.hint)


def _stand_on(
    asked: SftConfig | GrpoConfig, config: SftConfig | GrpoConfig, made: dict[str, Any], machine: Machine, folder: RunFolder
) -> _Prepared:
    """Write down what the run stands on. `asked` is the config as it is stored, with its paths as they were given."""
    parent = described_checkpoint(Path(config.model.init))
    inputs: dict[str, Any] = {"parent": parent}
    bench: dict[str, Any] = {}
    known: dict[str, Any] = {"parent": parent["sha256"]}
    if isinstance(config, SftConfig):
        inputs["data"] = described(config.data.files)
        known["data"] = [file["sha256"] for file in inputs["data"]]
    else:
        bench = bench_identity(config.tasks.domains, job.user_config(config, CUSTOMER_ELSEWHERE))
        known["chat"] = fingerprint(make_codec(config.chat))
    recorded = {"slime": {"root": str(config.slime.root), "commit": machine.slime_commit}}
    stands_on = environment(asked, bench, known, recorded=recorded)
    folder.write_environment(stands_on)
    return _Prepared(digest=stands_on["digest"], inputs=inputs, made=made)


def _write_tasks(config: GrpoConfig, here: SlimeRun) -> dict[str, Any]:
    """Write the prompts; how many tasks there are. Raises UserError for tasks that no training should see."""
    tasks = select(config.tasks)
    if not config.allow_held_out:
        refuse_held_out(tasks)
    looks = select(config.val) if config.train.val_every else []
    refuse_leak(tasks, looks)
    if config.user.kind == "llm" and not config.slime.user.gpus:
        check_key(config.user)
    here.own.mkdir(parents=True, exist_ok=True)
    write_prompts(tasks, here.prompts)
    if looks:
        write_prompts(looks, here.eval_prompts)
    return {"tasks": len(tasks)}


def _write_rows(config: SftConfig, here: SlimeRun) -> dict[str, Any]:
    """Write the conversations; what became of every row. Raises UserError when there are too few for one step."""
    from tau2rl.data.rows import read_rows  # it imports torch, which `grpo` has no use for here

    account = write_conversations(
        read_rows(config.data), load_tokenizer(config.model.init), here.prompts, max_tokens=longest_row(config)
    )
    told = account.told()
    log.info("%d rows to train on, %d left out", account.used, len(account.dropped))
    if account.used < config.train.batch_size:
        raise UserError(
            f"{account.used} rows can be trained on, fewer than `train.batch_size` = {config.train.batch_size}",
            hint=", ".join(f"{count} rows are left out: {why}" for why, count in told["reasons"].items())
            or "`data.files` names the rows",
        )
    return {"rows": told}


def _train(
    config: SftConfig | GrpoConfig, here: SlimeRun, folder: RunFolder, progress: Progress, argv: list[str], done: int
) -> str:
    """Run slime to its end; why it ended early, in words for people, "" where it did not."""
    redactor = Redactor(key_variables(dump(config)))
    redactor.refuse({"argv": argv})
    command = [settings.python(), str(job.script(config)), *argv]
    write_json(here.own / "command.json", {"command": command})
    rewind(folder.metrics, before=done + 1)
    if isinstance(config, GrpoConfig):
        rewind_episodes(folder.episodes, before=attempts_done(here.save, done))
    progress(ProgressEvent(done=done, total=config.train.steps, unit="steps", note="slime starts"))
    log.info("slime begins behind step %d of %d", done, config.train.steps)
    present = settings.child_environment()
    key = settings.secret("WANDB_API_KEY") if config.tracking.wandb == "online" else None
    words = SlimeLog(
        file=folder.logs / LOG,
        metrics=folder.metrics,
        steps=config.train.steps,
        updates=config.train.num_minibatches if isinstance(config, GrpoConfig) else 1,
        clean=redactor.text,
        say=sys.stderr,
        progress=progress,
    )
    with words, timed(folder) as clock, tracker_login(key, base_url=present.get("WANDB_BASE_URL")) as login:
        shared = shared_variables(present, {**job.environment(config), **login})
        redactor.refuse(shared)
        try:
            code = run_child(command, environment=child_environment(present, shared), on_line=words, cwd=Path.cwd())
        finally:
            clock.add("update", words.train_seconds)
    log.info("slime ended with code %d", code)
    if code == 0:
        return ""
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    reason = words.reason()
    return f"slime {how}{': ' + reason if reason else ''}\nits log: {folder.logs / LOG}"


def _conclude(config: SftConfig | GrpoConfig, folder: RunFolder, prepared: _Prepared, ended: str) -> Result:
    """Find the checkpoints and write the report. Raises RunIncomplete."""
    found = exports(folder.checkpoints)
    last = max(found, default=0)
    complete = not ended and last == config.train.steps
    report: dict[str, Any] = {}
    if last:
        checkpoint = point_final(folder.checkpoints, found[last]) if complete else found[last]
        report = report_of(
            config,
            digest=prepared.digest,
            inputs=prepared.inputs,
            checkpoint=described_checkpoint(checkpoint),
            made=prepared.made,
            training=summary(folder.metrics),
            cost=cost_of(folder.path),
            complete=complete,
        )
        folder.write_report(report)
    if not complete:
        raise RunIncomplete(
            ended
            or f"slime ended well, but left no whole Hugging Face checkpoint of step {config.train.steps} (last: step {last})"
        )
    return Result(report=report, complete=True)
