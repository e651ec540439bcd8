"""From a config to an exit code: make the run folder, then carry the run out here or as a Ray job."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from tau2rl import settings
from tau2rl.config import GrpoConfig, SftConfig, StageConfig
from tau2rl.errors import UserError
from tau2rl.launch import entry, jobs
from tau2rl.launch.processes import EXIT_INTERRUPTED, interruptible
from tau2rl.launch.ray_head import LocalHead
from tau2rl.runs.claim import is_vacant, withdraw
from tau2rl.runs.folder import RunFolder, run_path, stage_of
from tau2rl.runs.progress import Progress, ProgressEvent

OnDetached = Callable[[str, str], None]  # (job, address of its server)


def submit(
    config: StageConfig, *, on_line: jobs.OnLine, on_progress: Progress, on_detached: OnDetached = lambda job, address: None
) -> int:
    """Carry out a run; its exit code. Raises UserError.

    `on_line` gets every line that the run has for people, `on_progress` how far it is, `on_detached` the job that is left to
    itself; all are called in this thread.
    Where: in this process with `launch.inline`; else on the cluster of `launch.address` or RAY_ADDRESS; else on a head of
    its own that is gone when this returns. Ctrl-C stops the run and gives 130.
    """
    address = config.launch.address or settings.ray_address()
    if config.launch.detach and (config.launch.inline or address is None):
        raise UserError("`--detach` needs a cluster that stays", hint="give its job server with `--address http://HOST:8265`")
    with interruptible():
        try:
            if config.launch.inline:
                return in_folder(config, lambda path: entry.run(path, on_progress, say=on_line))
            return _as_job(config, address, on_line, on_progress, on_detached)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED


def _as_job(
    config: StageConfig, address: str | None, on_line: jobs.OnLine, on_progress: Progress, on_detached: OnDetached
) -> int:
    jobs.require_ray()
    if address is None:

        def on_own_head(path: Path) -> int:
            on_progress(ProgressEvent(done=0, total=None, note="starting a local Ray head"))
            with LocalHead(training=trains_on_actors(config)) as head:
                client = jobs.connect(head.address, head.headers)
                return follow_job(client, config, path, on_line, on_progress, alive=head.alive)

        return in_folder(config, on_own_head)  # the folder first: a name that is taken need not wait for a head

    client = jobs.connect(address)  # first: a dead address leaves no folder behind

    def detached(path: Path) -> int:
        job = jobs.submit_command(client, job_command(path), label=job_label(config))
        on_line(f"job `{job}` is running; follow it with: ray job logs --follow --address {client.get_address()} {job}")
        on_line(f"run folder: {path}")
        on_detached(job, client.get_address())
        return entry.EXIT_DONE

    def followed(path: Path) -> int:
        return follow_job(client, config, path, on_line, on_progress)

    return in_folder(config, detached if config.launch.detach else followed)


def in_folder(config: StageConfig, carry_out: Callable[[Path], int]) -> int:
    """Make or take up the run folder and carry the run out in it; the exit code. Raises UserError.

    A folder that is made for a request which turns out to be wrong goes again: most mistakes are found only where the run is
    carried out, which has the data and the checkpoints, and what was refused must not hold the name.
    """
    path = run_path(config)
    ours = is_vacant(path)
    RunFolder.create(path, config, resume=config.resume)
    try:
        code = carry_out(path)
    except UserError:
        if ours:
            withdraw(path)
        raise
    if ours and code == entry.EXIT_WRONG_REQUEST:
        withdraw(path)
    return code


def follow_job(
    client: jobs.JobSubmissionClient,
    config: StageConfig,
    path: Path,
    on_line: jobs.OnLine,
    on_progress: Progress,
    *,
    alive: Callable[[], bool] = lambda: True,
) -> int:
    """Submit the run in a folder as a job and follow it to its end; its exit code. Raises UserError."""
    job = jobs.submit_command(client, job_command(path), label=job_label(config))
    code = jobs.follow(client, job, on_line=on_line, on_progress=on_progress, alive=alive)
    if code == entry.EXIT_INCOMPLETE:
        on_line(f"hint: see {path / 'logs' / 'latest' / 'job.log'}")
    return code


def trains_on_actors(config: StageConfig) -> bool:
    """Whether the job has actors that pass tensors to one another and whose words must be heard, as slime's are."""
    return isinstance(config, SftConfig | GrpoConfig) and config.backend == "slime"


def job_label(config: StageConfig) -> str:
    """What the dashboard calls the job."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{stage_of(config)}-{run_path(config).name}")


def job_argv(path: Path) -> list[str]:
    """What a job runs: this interpreter, the entry, the run folder, and where relative paths are meant from."""
    return [settings.python(), "-m", "tau2rl.launch.entry", str(path), str(Path.cwd())]


def job_command(path: Path) -> str:
    """`job_argv` as a line of shell, with nothing but paths in it."""
    # This interpreter where the worker has it (this machine, a shared file system, the same image), else the worker's own.
    # `exec`: the shell leaves, so signals reach the entry and the exit code is the entry's.
    ours, *rest = job_argv(path)
    return f'python={shlex.quote(ours)}; [ -x "$python" ] || python=python; exec "$python" {shlex.join(rest)}'
