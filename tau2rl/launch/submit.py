"""From a config to an exit code: make the run folder, carry the run out here or as a Ray job; a pipeline is many of these."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from tau2rl import settings
from tau2rl.config import LaunchConfig, PipelineConfig, StageConfig, dump
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.launch import checks, entry, jobs
from tau2rl.launch.ray_head import LocalHead
from tau2rl.recipes.pipeline_budget import PipelineBudget, estimate_words_of, refuse_uncapped
from tau2rl.recipes.pipeline_plan import Planned, plan_pipeline
from tau2rl.recipes.pipeline_report import build_pipeline_report, finished
from tau2rl.recipes.training import trains_on_actors
from tau2rl.report.tables import quantity
from tau2rl.runs.budget import STOPPED
from tau2rl.runs.claim import Claim, claimed
from tau2rl.runs.folder import RunFolder, run_path, stage_of
from tau2rl.runs.progress import Place, Progress, ProgressEvent, seconds_left
from tau2rl.runs.secrets import Redactor, key_variables

OnDetached = Callable[[str, str], None]  # (job, address of its server)
CarryOut = Callable[[StageConfig, Path, jobs.OnLine, Progress], int]  # the exit code of the run in a folder


class Watcher(Protocol):
    """Shows one run while it goes."""

    ended_well: bool

    def on_line(self, line: str, /) -> None:
        """A line that the run has for people."""
        ...

    def on_progress(self, event: ProgressEvent, /) -> None:
        """How far it is."""
        ...


def submit(
    config: StageConfig, *, on_line: jobs.OnLine, on_progress: Progress, on_detached: OnDetached = lambda job, address: None
) -> int:
    """Carry out a run; its exit code. Raises UserError.

    `on_line` gets every line that the run has for people, `on_progress` how far it is, `on_detached` the job that is left to
    itself; all are called in this thread.
    Where: in this process with `launch.inline`; else on the cluster of `launch.address` or RAY_ADDRESS; else on a head of
    its own that is gone when this returns. Ctrl-C stops the run and gives 130.
    """
    launch = config.launch
    if not launch.inline:  # here the run itself finds out, as soon
        check([config])
    if launch.detach and (launch.inline or _address(launch) is None):
        raise UserError("`--detach` needs a cluster that stays", hint="give its job server with `--address http://HOST:8265`")

    def carry_out(claim: Claim) -> int:
        if launch.detach:
            assert cluster is not None
            return _detach(cluster, config, claim, on_line, on_detached)
        with _place(launch, cluster, on_progress, training=trains_on_actors(config)) as run:
            return run(config, claim.path, on_line, on_progress)

    with entry.interruptible():
        try:
            cluster = _cluster(launch)  # first: a dead address leaves no folder behind
            return _in_folder(config, carry_out)  # a head comes later: a name that is taken need not wait for one
        except KeyboardInterrupt:
            return entry.EXIT_INTERRUPTED


def check(configs: Sequence[StageConfig], *, made: Path | None = None, dry: bool = False) -> None:
    """Raise UserError with what runs name and this machine has not; `made`: a folder in which earlier ones of them leave it.

    What runs on a cluster that is named finds its files, packages and keys there, and they are left to the job. `dry`: it is
    only shown, so a training on Ray actors counts as one of a cluster too.
    """
    checks.refuse(configs, made=made, elsewhere=lambda config: _elsewhere(config, dry=dry))


def not_here(configs: Sequence[StageConfig], *, made: Path | None = None) -> list[str]:
    """The paths that a dry run leaves to the machines that carry the runs out, because this one has not got them."""
    return checks.not_here([config for config in configs if _elsewhere(config, dry=True)], made=made)


def _elsewhere(config: StageConfig, *, dry: bool) -> bool:
    named = _address(config.launch) is not None and not config.launch.inline
    return named or (dry and trains_on_actors(config))


Watch = Callable[[Place | None], AbstractContextManager[Watcher]]  # None: of what comes before the first run


def run_chain(config: PipelineConfig, *, watch: Watch, say: Callable[[str], None]) -> int:
    """Carry out the runs of a pipeline that are not yet finished, one behind the other; the exit code of the first that is not 0.

    All on one local head, where there is no cluster. `report.json` of the pipeline's folder is up to date after every run. The
    same pipeline, started again, goes on where it broke. Raises UserError.
    """
    if config.launch.detach:
        raise UserError("a pipeline is followed to its end: it cannot be detached", hint="leave out `--detach`")
    runs = plan_pipeline(config, run_path(config))  # first: a wrong step need not wait for the ones before it
    refuse_uncapped(config, runs)
    waiting = [planned for planned in runs if not finished(planned)]
    checks.refuse_lost(runs)
    check([planned.config for planned in waiting], made=run_path(config))

    budget = PipelineBudget(config, runs)
    ended: list[tuple[str, float]] = []  # stage and seconds of the runs of this start

    def one(planned: Planned, run: CarryOut) -> int:
        stage, began = budget.capped(planned), time.monotonic()
        left, all_known = seconds_left(ended, [stage_of(each.config) for each in waiting[len(ended) :]])
        number = runs.index(planned) + 1
        place = Place(words=_words(planned), number=number, total=len(runs), left=left, all_known=all_known)
        with watch(place) as watcher:
            code = _in_folder(stage, lambda claim: run(stage, claim.path, watcher.on_line, watcher.on_progress))
            watcher.ended_well = code == entry.EXIT_DONE
        ended.append((stage_of(stage), time.monotonic() - began))
        return code

    def carry_out(folder: RunFolder) -> int:
        if len(waiting) < len(runs):
            say(f"{len(runs) - len(waiting)} of {quantity(len(runs), 'run')} finished already")
        if estimate := estimate_words_of(config, runs):
            say(estimate)
        with ExitStack() as stack:
            if waiting:
                training = any(trains_on_actors(planned.config) for planned in runs)
                with watch(None) as watcher:
                    place = _place(config.launch, _cluster(config.launch), watcher.on_progress, training=training)
                    run = stack.enter_context(place)
                for planned in waiting:
                    if reached := budget.over():
                        say(f"{reached}; the next run is {_words(planned)}")
                        return entry.EXIT_INCOMPLETE
                    if code := one(planned, run):
                        if code == entry.EXIT_INCOMPLETE and (reached := budget.over(planned)):
                            say(reached)
                        return code
                    folder.write_report(build_pipeline_report(runs, config.compare))
        folder.write_report(build_pipeline_report(runs, config.compare))
        return entry.EXIT_DONE

    with entry.interruptible():
        try:
            with claimed(run_path(config), config, resume=True) as claim, RunFolder.open(claim.path) as folder:
                return carry_out(folder)
        except KeyboardInterrupt:
            return entry.EXIT_INTERRUPTED


def _words(planned: Planned) -> str:
    return f"evaluate `{planned.name}`" if planned.kind == "evaluation" else f"`{planned.name}` ({stage_of(planned.config)})"


def _address(launch: LaunchConfig) -> str | None:
    return launch.address or settings.ray_address()


def _cluster(launch: LaunchConfig) -> jobs.JobServer | None:
    """A client of the cluster that is named; None where runs are carried out in this process or on a head of our own."""
    if launch.inline:
        return None
    jobs.require_ray()
    address = _address(launch)
    return jobs.connect(address) if address else None


@contextmanager
def _place(launch: LaunchConfig, cluster: jobs.JobServer | None, on_progress: Progress, *, training: bool) -> Generator[CarryOut]:
    """Where runs are carried out: this process, a cluster, or a head of our own that is gone afterwards."""
    if launch.inline:
        yield lambda config, path, on_line, on_progress: entry.run(path, on_progress, say=on_line)
    elif cluster is not None:
        yield lambda config, path, on_line, on_progress: _follow(cluster, config, path, on_line, on_progress)
    else:
        on_progress(ProgressEvent(done=0, total=None, note="starting a local Ray head"))
        with LocalHead(training=training) as head:
            own = jobs.connect(
                head.address, head.headers, lost_seconds=jobs.OWN_HEAD_LOST_SECONDS, alive=head.alive,
                last_words=head.last_words, variables=head.job_variables,
            )  # fmt: skip
            yield lambda config, path, on_line, on_progress: _follow(own, config, path, on_line, on_progress)


def _in_folder(config: StageConfig, carry_out: Callable[[Claim], int]) -> int:
    """Make or take up the run folder and carry the run out in it; the exit code. Raises UserError.

    A folder that is made for a request which turns out to be wrong goes again: most mistakes are found only where the run is
    carried out, which has the data and the checkpoints, and what was refused must not hold the name.
    """
    with claimed(run_path(config), config, resume=config.resume, has_ended=_has_ended) as claim:
        try:
            code = carry_out(claim)
        except UserError as error:
            claim.withdraw()
            raise _redactor(config).error(error) from None
        except RunIncomplete:  # before it began
            claim.withdraw()
            raise
        if code == entry.EXIT_WRONG_REQUEST:
            claim.withdraw()
        return code


def _follow(server: jobs.JobServer, config: StageConfig, path: Path, on_line: jobs.OnLine, on_progress: Progress) -> int:
    """Submit the run in a folder as a job and follow it to its end; its exit code. Raises UserError."""
    clean = _redactor(config).text  # libraries, and Ray itself, speak in a job too
    job = jobs.new_id(job_label(config))
    server.submit(job_command(path), job)
    code = server.follow(job, on_line=lambda line: on_line(clean(line)), on_progress=on_progress)
    log = path / "logs" / "latest" / "job.log"
    if code == entry.EXIT_INCOMPLETE and log.exists() and not log.with_name(STOPPED).exists():  # a cap says itself what it is
        on_line(f"hint: see {shlex.quote(str(log))}")
    return code


def _detach(server: jobs.JobServer, config: StageConfig, claim: Claim, on_line: jobs.OnLine, on_detached: OnDetached) -> int:
    """Submit the run and leave it to itself."""
    job = jobs.new_id(job_label(config))
    with claim.left_to(f"{job} at {server.address}"):
        server.submit(job_command(claim.path), job)
    on_line(f"job `{job}` is running; follow it with: ray job logs --follow --address {server.address} {job}")
    on_line(f"run folder: {claim.path}")
    on_detached(job, server.address)
    return entry.EXIT_DONE


def _has_ended(job: str, address: str) -> bool:
    """Whether the job that holds a run is over; not where nobody answers for it: it may be running all the same."""
    try:
        return jobs.connect(address).has_ended(job)
    except (UserError, OSError, RuntimeError):
        return False


def _redactor(config: StageConfig) -> Redactor:
    return Redactor(key_variables(dump(config)))


def job_label(config: StageConfig) -> str:
    """What the dashboard calls the job."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{stage_of(config)}-{run_path(config).name}")


def job_argv(path: Path) -> list[str]:
    """What a job runs: this interpreter, the entry, the run folder, where relative paths are meant from, and PYTHONPATH."""
    return [settings.python(), "-m", "tau2rl.launch.entry", str(path), str(Path.cwd()), *settings.python_path()]


def job_command(path: Path) -> str:
    """`job_argv` as a line of shell, with nothing but paths in it."""
    # This interpreter where the worker has it (this machine, a shared file system, the same image), else the worker's own.
    # `exec`: the shell leaves, so signals reach the entry and the exit code is the entry's.
    ours, *rest = job_argv(path)
    return f'python={shlex.quote(ours)}; [ -x "$python" ] || python=python; exec "$python" {shlex.join(rest)}'
