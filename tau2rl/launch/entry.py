"""What a job runs: `python -m tau2rl.launch.entry RUN_DIR [DIRECTORY...]`. Everything else it needs is in the run folder.

The first DIRECTORY is where the command was given; relative paths in the config are meant from there. It and the others, the
command's PYTHONPATH, are where plug-ins are looked for.
Exit codes: 0 done, 1 failed or incomplete, 2 the request was wrong, 130 interrupted.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tau2rl import plugins, settings
from tau2rl.config import EvalConfig, GrpoConfig, RftConfig, SeedConfig, SftConfig, StageConfig, dump
from tau2rl.config.extras import refuse_lacking
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.runs.files import WAYS_OUT
from tau2rl.runs.folder import RunFolder, stage_of
from tau2rl.runs.progress import FILE as PROGRESS, FileProgress, JsonProgress, Progress
from tau2rl.runs.secrets import Redactor, key_variables
from tau2rl.runs.timing import usage_kept
from tau2rl.terminal import clean

if TYPE_CHECKING:
    from tau2rl.runs.reports import Result


EXIT_DONE, EXIT_INCOMPLETE, EXIT_WRONG_REQUEST, EXIT_INTERRUPTED = 0, 1, 2, 130


@contextmanager
def interruptible() -> Generator[None]:
    """Inside, the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt in the main thread; the second exits with 130."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    received: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(EXIT_INTERRUPTED)
        raise KeyboardInterrupt

    wanted = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    heard = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]  # nohup means what it says
    before = {number: signal.signal(number, on_signal) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_RECIPES: dict[type[StageConfig], str] = {
    EvalConfig: "eval",
    SeedConfig: "seed",
    RftConfig: "rft",
    SftConfig: "sft",
    GrpoConfig: "grpo",
}


def run_stage(folder: RunFolder, progress: Progress) -> Result:
    """Run the stage of the folder's config to its end, and keep what it took. Raises what the stage raises."""
    config = folder.config
    if type(config) not in _RECIPES:
        raise UserError(f"stage `{stage_of(config)}` cannot be run")
    with usage_kept(folder, progress) as heard:
        return importlib.import_module(f"tau2rl.recipes.{_RECIPES[type(config)]}").run(config, folder, heard)


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
            plugins.search(arguments[1:])
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

    Any other failure of the stage goes to the log with its traceback, and to `say` in one line. No secret is in what is said.
    """
    settings.load_secrets()
    settings.quiet_libraries()
    settings.loopback_without_proxy()
    with RunFolder.open(path) as folder:
        kept = FileProgress(folder.logs / PROGRESS, progress)
        redactor = Redactor(key_variables(dump(folder.config)))
        with _logging(folder, redactor), _heard(lambda text: say(redactor.text(text))):
            stage, started = stage_of(folder.config), time.monotonic()
            _log.info("%s %s begins, start %d, pid %d", stage, folder.path, folder.session, os.getpid())
            if folder.torn_bytes:
                _log.warning("cut %d bytes of a torn line", folder.torn_bytes)
            try:
                code = _carry_out(folder, kept, lambda text: say(redactor.text(text)))
            except UserError as error:
                raise redactor.error(error) from None
            finally:
                kept.flush()
            _log.info("%s %s ends with code %d after %.1f s", stage, folder.path, code, time.monotonic() - started)
            return code


def load_plugins(modules: Sequence[str]) -> None:
    """Import the modules of `plugins`, and let others be found where the command was given. Raises UserError."""
    plugins.search([Path.cwd()])
    if modules:
        importlib.import_module("tau2rl.env.domain")  # first: what they import of tau2 comes in through the door that checks it
        plugins.import_all(modules)


def _carry_out(folder: RunFolder, progress: Progress, say: Callable[[str], None]) -> int:
    # The command that follows the run says what to type, and for a step of a pipeline that is another one.
    goes_on = "\n\nhint: continue it with `--resume`" if folder.config.launch.detach else ""
    try:
        refuse_lacking(folder.config)
        load_plugins(folder.config.plugins)
        result = run_stage(folder, progress)
    except UserError as error:
        _log.info("refused: %s", error)
        raise
    except RunIncomplete as error:
        _log.info("incomplete: %s", error)
        say(f"{error}{goes_on}")
        return EXIT_INCOMPLETE
    except KeyboardInterrupt:
        _log.info("interrupted")
        if goes_on:
            say(f"interrupted; what is done is kept{goes_on}")
        return EXIT_INTERRUPTED
    except OSError as error:
        _log.exception("the run failed")
        if error.filename is None and error.errno not in WAYS_OUT:  # of a connection, say
            say(_in_a_line(error, folder))
        else:
            file = error.filename if error.filename is not None else folder.path
            hint = WAYS_OUT.get(error.errno or 0, "look at that file: something else than the run has put it there")
            say(f"error: cannot read or write `{file}`: {error.strerror}; what was written before is kept\n\nhint: {hint}")
        return EXIT_INCOMPLETE
    except Exception as error:  # noqa: BLE001 - the end of the job: a bug is told in one line, and in full in the log
        _log.exception("the run failed")
        say(_in_a_line(error, folder))
        return EXIT_INCOMPLETE
    return EXIT_DONE if result.complete else EXIT_INCOMPLETE


def _in_a_line(error: Exception, folder: RunFolder) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"error: {type(error).__name__}: {first}\n\nhint: see {folder.job_log}"


@contextmanager
def _logging(folder: RunFolder, redactor: Redactor) -> Generator[None]:
    """Our messages and other libraries' warnings go to the log of this start."""
    handler = _LogFile(folder.job_log, encoding="utf-8")
    handler.setFormatter(_Formatter(redactor))
    ours, level = logging.getLogger("tau2rl"), logging.getLogger("tau2rl").level
    ours.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        ours.setLevel(level)
        handler.close()


# Whose warnings people are told at once, beside the log: something that was asked for is left out, or is done another way.
TOLD = "tau2rl.runs.budget"  # whose messages are for people all the same
HEARD = ("tau2rl.runs.trackers", "tau2rl.recipes.grpo", "tau2rl.recipes.training", "tau2rl.train.backend", "tau2rl.data.encoding")


@contextmanager
def _heard(say: Callable[[str], None]) -> Generator[None]:
    """Warnings of `HEARD` are said too, without their tracebacks, and what `TOLD` says."""
    handler = _Said(say)
    loggers = [logging.getLogger(name) for name in (*HEARD, TOLD)]
    for each in loggers:
        each.addHandler(handler)
    try:
        yield
    finally:
        for each in loggers:
            each.removeHandler(handler)


class _Said(logging.Handler):
    """Passes warnings on as lines for people, and what is no warning but for them."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """The message alone."""
        if record.levelno >= logging.WARNING:
            self._say(f"warning: {record.getMessage()}")
        elif record.name == TOLD:
            self._say(record.getMessage())


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short: what cannot be written is no reason to end the run, nor to show how logging works."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the run itself says that the disk is full."""

    def close(self) -> None:
        """Close, whatever is still in memory."""
        with suppress(OSError):
            super().close()


class _Formatter(logging.Formatter):
    """UTC times; no secret in a message or a traceback, and nothing that a terminal would obey."""

    converter = time.gmtime

    def __init__(self, redactor: Redactor) -> None:
        super().__init__("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback below it."""
        return clean(self._redactor.text(super().format(record)))


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"{clean(text)}\n")  # a cluster's own `ray job logs` shows it as it is
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
