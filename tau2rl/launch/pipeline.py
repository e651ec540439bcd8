"""Runs a pipeline, one run behind the other: each a Ray job on one local head that is started once, or all in this process.

What runs in which order is `recipes/pipeline_plan.py`, what came of it `recipes/pipeline_report.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from tau2rl import settings
from tau2rl.config import LaunchConfig, PipelineConfig, StageConfig
from tau2rl.errors import UserError
from tau2rl.launch import entry, jobs
from tau2rl.launch.processes import EXIT_INTERRUPTED, interruptible
from tau2rl.launch.ray_head import LocalHead
from tau2rl.launch.submit import follow_job, in_folder, trains_on_actors
from tau2rl.recipes.pipeline_plan import Planned, plan
from tau2rl.recipes.pipeline_report import build_report, finished
from tau2rl.runs.folder import RunFolder, run_path, stage_of
from tau2rl.runs.progress import ProgressEvent


class Watcher(Protocol):
    """Shows one run of the chain while it goes."""

    def on_line(self, line: str, /) -> None:
        """A line that the run has for people."""
        ...

    def on_progress(self, event: ProgressEvent, /) -> None:
        """How far it is."""
        ...


Watch = Callable[[], AbstractContextManager[Watcher]]
CarryOut = Callable[[StageConfig, Watcher], int]


def run_pipeline(config: PipelineConfig, *, watch: Watch, say: Callable[[str], None]) -> int:
    """Carry out what is not yet finished, one run behind the other; the exit code of the first that is not 0.

    `report.json` of the pipeline's folder is up to date after every run. The same pipeline, started again, goes on where it
    broke. Raises UserError.
    """
    if config.launch.detach:
        raise UserError("a pipeline is followed to its end: it cannot be detached", hint="leave out `--detach`")
    runs = plan(config, run_path(config))  # first: a wrong step need not wait for the ones before it
    with interruptible():
        try:
            path = RunFolder.create(run_path(config), config, resume=True)
            with RunFolder.open(path) as folder:
                return _run_all(runs, folder, config.launch, watch, say)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED


def _run_all(runs: list[Planned], folder: RunFolder, launch: LaunchConfig, watch: Watch, say: Callable[[str], None]) -> int:
    waiting = [planned for planned in runs if not finished(planned)]
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already")
    code = entry.EXIT_DONE
    if waiting:
        with watch() as watcher, _place(launch, runs, watcher) as carry_out:
            code = _run_waiting(runs, waiting, folder, carry_out, watch, say)
    folder.write_report(build_report(runs))
    return code


def _run_waiting(
    runs: list[Planned], waiting: list[Planned], folder: RunFolder, carry_out: CarryOut, watch: Watch, say: Callable[[str], None]
) -> int:
    for planned in waiting:
        say(f"{runs.index(planned) + 1} of {len(runs)}: {_words(planned)}")
        with watch() as watcher:
            code = carry_out(planned.config, watcher)
        if code != entry.EXIT_DONE:
            return code
        folder.write_report(build_report(runs))
    return entry.EXIT_DONE


@contextmanager
def _place(launch: LaunchConfig, runs: list[Planned], watcher: Watcher) -> Generator[CarryOut]:
    """Where runs are carried out: this process, the cluster at an address, or a head of our own for the whole chain."""
    address = launch.address or settings.ray_address()
    if launch.inline:
        yield lambda config, watcher: in_folder(config, lambda path: entry.run(path, watcher.on_progress, say=watcher.on_line))
        return
    jobs.require_ray()
    if address is not None:
        yield _on_cluster(jobs.connect(address), lambda: True)
        return
    watcher.on_progress(ProgressEvent(done=0, total=None, note="starting a local Ray head"))
    with LocalHead(training=any(trains_on_actors(planned.config) for planned in runs)) as head:
        yield _on_cluster(jobs.connect(head.address, head.headers), head.alive)


def _on_cluster(client: jobs.JobSubmissionClient, alive: Callable[[], bool]) -> CarryOut:
    def carry_out(config: StageConfig, watcher: Watcher) -> int:
        return in_folder(config, lambda path: follow_job(client, config, path, watcher.on_line, watcher.on_progress, alive=alive))

    return carry_out


def _words(planned: Planned) -> str:
    return f"evaluate `{planned.name}`" if planned.kind == "evaluation" else f"`{planned.name}` ({stage_of(planned.config)})"
