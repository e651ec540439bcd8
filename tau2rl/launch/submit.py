"""From a config to an exit code: make the run folder, then carry the run out here or as a Ray job."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tau2rl import settings
from tau2rl.config import StageConfig
from tau2rl.errors import UserError
from tau2rl.launch import entry, jobs
from tau2rl.launch.interrupts import EXIT_INTERRUPTED, interruptible
from tau2rl.launch.ray_head import LocalHead
from tau2rl.store.progress import Progress, ProgressEvent
from tau2rl.store.run import RunFolder, run_path, stage_of


def submit(config: StageConfig, *, on_line: jobs.OnLine, on_progress: Progress) -> int:
    """Carry out a run; its exit code. Raises UserError.

    `on_line` gets every line that the run has for people, `on_progress` how far it is; both are called in this thread.
    Where: in this process with `launch.inline`; else on the cluster of `launch.address` or RAY_ADDRESS; else on a head of
    its own that is gone when this returns. Ctrl-C stops the run and gives 130.
    """
    address = config.launch.address or settings.ray_address()
    if config.launch.detach and (config.launch.inline or address is None):
        raise UserError("`--detach` needs a cluster that stays", hint="give its job server with `--address http://HOST:8265`")
    with interruptible():
        try:
            if config.launch.inline:
                return entry.run(_create(config), on_progress, say=on_line)
            return _as_job(config, address, on_line, on_progress)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED


def _as_job(config: StageConfig, address: str | None, on_line: jobs.OnLine, on_progress: Progress) -> int:
    jobs.require_ray()
    if address is None:
        path = _create(config)  # first: a wrong request need not wait for a head
        on_progress(ProgressEvent(done=0, total=None, note="starting a local Ray head"))
        with LocalHead() as head:
            client = jobs.connect(head.address, head.headers)
            job = jobs.submit_command(client, _command(path), label=_label(config))
            code = jobs.follow(client, job, on_line=on_line, on_progress=on_progress, alive=head.alive)
    else:
        client = jobs.connect(address)  # first: a dead address leaves no folder behind
        path = _create(config)
        job = jobs.submit_command(client, _command(path), label=_label(config))
        if config.launch.detach:
            on_line(f"job `{job}` is running; follow it with: ray job logs --follow --address {client.get_address()} {job}")
            on_line(f"run folder: {path}")
            return entry.EXIT_DONE
        code = jobs.follow(client, job, on_line=on_line, on_progress=on_progress)
    if code == entry.EXIT_INCOMPLETE:
        on_line(f"hint: see {path / 'logs' / 'latest' / 'job.log'}")
    return code


def _create(config: StageConfig) -> Path:
    return RunFolder.create(run_path(config), config, resume=config.resume)


def _label(config: StageConfig) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{stage_of(config)}-{run_path(config).name}")


def _command(path: Path) -> str:
    """The job's command line: a line of shell with nothing but paths in it."""
    # This interpreter where the worker has it (this machine, a shared file system, the same image), else the worker's own.
    # `exec`: the shell leaves, so signals reach the entry and the exit code is the entry's.
    ours = shlex.quote(settings.python())
    entry_and_paths = shlex.join(["-m", "tau2rl.launch.entry", str(path), str(Path.cwd())])
    return f'python={ours}; [ -x "$python" ] || python=python; exec "$python" {entry_and_paths}'
