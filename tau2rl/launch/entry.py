"""What a job runs: `python -m tau2rl.launch.entry RUN_DIR [DIRECTORY]`. Everything else it needs is in the run folder.

DIRECTORY is where the command was given; relative paths in the config are meant from there.
Exit codes: 0 done, 1 failed or incomplete, 2 the request was wrong, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tau2rl import settings
from tau2rl.config import EvalConfig, GrpoConfig, RftConfig, SeedConfig, SftConfig, dump
from tau2rl.env.lazy_litellm import put_off
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.launch.processes import EXIT_INTERRUPTED, interruptible
from tau2rl.runs.files import write_json
from tau2rl.runs.folder import RunFolder, stage_of
from tau2rl.runs.progress import JsonProgress, Progress
from tau2rl.runs.secrets import Redactor, key_variables

if TYPE_CHECKING:
    from tau2rl.runs.reports import Result


def run_stage(folder: RunFolder, progress: Progress) -> Result:
    """Run the stage of the folder's config to its end, and keep what it took. Raises what the stage raises."""
    began, cpu = time.monotonic(), time.process_time()
    try:
        return _run(folder, progress)
    finally:
        write_json(folder.usage, {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu})


def _run(folder: RunFolder, progress: Progress) -> Result:
    match folder.config:
        case EvalConfig() as config:
            from tau2rl.recipes import eval as stage

            return stage.run(config, folder, progress)
        case SeedConfig() as config:
            from tau2rl.recipes import seed as stage

            return stage.run(config, folder, progress)
        case RftConfig() as config:
            from tau2rl.recipes import rft as stage

            return stage.run(config, folder, progress)
        case SftConfig(backend="slime") | GrpoConfig(backend="slime") as config:
            from tau2rl.slime import backend as stage

            return stage.run(config, folder, progress)
        case SftConfig() as config:
            from tau2rl.recipes import sft as stage

            return stage.run(config, folder, progress)
        case GrpoConfig() as config:
            from tau2rl.recipes import grpo as stage

            return stage.run(config, folder, progress)
        case other:
            raise UserError(f"stage `{stage_of(other)}` cannot be run")


EXIT_DONE, EXIT_INCOMPLETE, EXIT_WRONG_REQUEST = 0, 1, 2

_log = logging.getLogger("tau2rl.launch")  # as a job this module is `__main__`


def main(arguments: list[str]) -> int:
    """The job: exit code of the run in `arguments[0]`; words for people on stderr, progress lines on stdout."""
    settings.collect_rarely()
    progress = JsonProgress(sys.stdout)
    try:
        with interruptible():
            if not arguments:
                raise UserError("no run folder given", hint="this is what jobs run; start with `tau2rl eval`")
            if len(arguments) > 1 and Path(arguments[1]).is_dir():  # a cluster need not have the directory
                os.chdir(arguments[1])
            return run(Path(arguments[0]), progress, say=_to_stderr)
    except UserError as error:
        _to_stderr(f"error: {error}")
        return EXIT_WRONG_REQUEST
    except KeyboardInterrupt:  # before the folder was open
        return EXIT_INTERRUPTED
    finally:
        progress.flush()


def run(path: Path, progress: Progress, *, say: Callable[[str], None]) -> int:
    """Carry out the run in a folder, in this process; the exit code. Raises UserError.

    Any other failure of the stage goes to the log with its traceback, and to `say` in one line.
    """
    settings.load_secrets()
    settings.quiet_libraries()
    with RunFolder.open(path) as folder, _logging(folder):
        stage, started = stage_of(folder.config), time.monotonic()
        _log.info("%s %s begins, start %d, pid %d", stage, folder.path, folder.session, os.getpid())
        if folder.torn_bytes:
            _log.warning("cut %d bytes of a torn line", folder.torn_bytes)
        code = _carry_out(folder, progress, say)
        _log.info("%s %s ends with code %d after %.1f s", stage, folder.path, code, time.monotonic() - started)
        return code


def _carry_out(folder: RunFolder, progress: Progress, say: Callable[[str], None]) -> int:
    try:
        result = run_stage(folder, progress)
    except UserError as error:
        _log.info("refused: %s", error)
        raise
    except RunIncomplete as error:
        _log.info("incomplete: %s", error)
        say(f"{error}\n\nhint: continue it with `--resume`")
        return EXIT_INCOMPLETE
    except KeyboardInterrupt:
        _log.info("interrupted")
        say("interrupted; what is done is kept\n\nhint: continue it with `--resume`")
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the end of the job: a bug is told in one line, and in full in the log
        _log.exception("the run failed")
        first = next(iter(str(error).splitlines()), "")
        say(
            Redactor(key_variables(dump(folder.config))).text(
                f"error: {type(error).__name__}: {first}\n\nhint: see {folder.job_log}"
            )
        )
        return EXIT_INCOMPLETE
    return EXIT_DONE if result.complete else EXIT_INCOMPLETE


@contextmanager
def _logging(folder: RunFolder) -> Generator[None]:
    """Our messages and other libraries' warnings go to the log of this start."""
    handler = logging.FileHandler(folder.job_log, encoding="utf-8")
    handler.setFormatter(_Formatter(Redactor(key_variables(dump(folder.config)))))
    ours, level = logging.getLogger("tau2rl"), logging.getLogger("tau2rl").level
    ours.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        ours.setLevel(level)
        handler.close()


class _Formatter(logging.Formatter):
    """UTC times, and no secret in a message or a traceback."""

    converter = time.gmtime

    def __init__(self, redactor: Redactor) -> None:
        super().__init__("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback below it."""
        return self._redactor.text(super().format(record))


def _to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    put_off()
    sys.exit(main(sys.argv[1:]))
