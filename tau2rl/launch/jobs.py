"""A command as a Ray job: submitted, followed to its end, stopped when we are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from tau2rl.config.extras import importable, part_of
from tau2rl.doctor.services import answers, connects
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.launch.entry import EXIT_INTERRUPTED
from tau2rl.runs.progress import Progress, parse
from tau2rl.settings import UTF8_MODE

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

T = TypeVar("T")
OnLine = Callable[[str], None]

CONNECT_SECONDS = 5.0
POLL_SECONDS = 0.5
LOST_SECONDS = 120.0  # without a word from a cluster's job server, the job counts as lost
OWN_HEAD_LOST_SECONDS = 40.0  # from one on this machine
STOP_SECONDS = 30  # between SIGTERM and SIGKILL: episodes in flight are closed, records are written
_ADDRESS_HINT = "`--address http://HOST:8265` is the cluster's dashboard; without it a local head is started for the run"


def require_ray() -> None:
    """Raise UserError where Ray is not installed."""
    if not importable("ray"):
        refusal = part_of("ray").refusal("a job")
        raise UserError(refusal.message, hint=f"{refusal.hint}, or run in this process with `--inline`")


def connect(
    address: str,
    headers: dict[str, str] | None = None,
    *,
    lost_seconds: float = LOST_SECONDS,
    alive: Callable[[], bool] = lambda: True,
    last_words: Callable[[], str] = lambda: "",
    variables: Mapping[str, str] = MappingProxyType({}),
) -> JobServer:
    """The job server at `http://HOST:8265`, or of the cluster at `HOST:PORT`, `ray://HOST:PORT` or `auto`.

    `lost_seconds`, `alive`: after how long a silence, and by whose word, the cluster counts as gone; `last_words`: what it said
    before. `variables`: of the environment of jobs. Raises UserError within seconds when nobody answers there.
    """
    _reach(address, headers or {})
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells of every socket it closes
    try:
        client = JobSubmissionClient(address, headers=headers)
    except (OSError, RuntimeError, ValueError, RayError) as error:  # no server, no version, no address, no token
        raise UserError(f"cannot use the Ray cluster at `{address}`: {error}", hint=_ADDRESS_HINT) from None
    if address.startswith("http") and client.get_address() != address.rstrip("/"):
        raise UserError(
            f"Ray would use `{client.get_address()}` instead of `{address}`: its own environment variables win",
            hint="unset RAY_ADDRESS and RAY_API_SERVER_ADDRESS",
        )
    return JobServer(client, lost_seconds, alive, last_words, variables)


def _reach(address: str, headers: dict[str, str]) -> None:
    """Raise UserError when nobody listens there: Ray's own client would try for a minute, or forever."""
    if address.startswith(("http://", "https://")):
        status = answers(f"{address.rstrip('/')}/api/version", headers=headers, seconds=CONNECT_SECONDS)
        if status == HTTPStatus.NOT_FOUND:
            raise UserError(f"what answers at `{address}` is not Ray's job server", hint=_ADDRESS_HINT)
        there = status is not None
    else:
        there = address == "auto" or connects(address, default_port=6379, seconds=CONNECT_SECONDS)
    if not there:
        raise UserError(f"no Ray cluster answers at `{address}`", hint=_ADDRESS_HINT)


def new_id(label: str) -> str:
    """A name for a job that no other job has."""
    return f"tau2rl-{label}-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class JobServer:
    """Ray's job server. Its client has no timeouts, so it is only called in threads that are left behind when they hang."""

    client: JobSubmissionClient
    lost_seconds: float
    alive: Callable[[], bool]
    last_words: Callable[[], str]
    variables: Mapping[str, str]

    @property
    def address(self) -> str:
        """`http://HOST:8265`."""
        return self.client.get_address()

    def submit(self, command: str, job: str) -> None:
        """Submit a shell command as a job of this name. Raises UserError, and RunIncomplete where our own head has ended.

        A server with much to do may drop the connection without an answer: it is asked whether it has the job, and again.
        """
        # Nothing secret in the environment of the job: the dashboard shows it to everybody. Its actors inherit it.
        environment = {"env_vars": {**self.variables, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), UTF8_MODE: "1"}}
        for attempt, patience in enumerate((1.0, 5.0, None)):
            try:
                if not attempt or not self._has(job):
                    self._ask(lambda: self.client.submit_job(entrypoint=command, submission_id=job, runtime_env=environment))
                return
            except (OSError, RuntimeError) as error:
                if not self.alive():
                    words = "the local Ray head ended before it took the run"
                    hint = "the same command begins again; `--inline` (`launch.inline`) runs in this process without Ray"
                    raise RunIncomplete("\n".join(filter(None, (words, self.last_words(), f"\nhint: {hint}")))) from None
                if patience is None or isinstance(error, RuntimeError | TimeoutError):
                    words = f"the cluster at `{self.address}` did not take the job: {error}"
                    raise UserError(words, hint=_ADDRESS_HINT) from None
                time.sleep(patience)

    def _has(self, job: str) -> bool:
        return any(details.submission_id == job for details in self._ask(self.client.list_jobs, CONNECT_SECONDS))

    def has_ended(self, job: str) -> bool:
        """Whether a job is over, or unknown to its server, which remembers all of its own. Raises OSError, RuntimeError."""
        known = {details.submission_id: details.status for details in self._ask(self.client.list_jobs, CONNECT_SECONDS)}
        return job not in known or known[job].is_terminal()

    def follow(self, job: str, *, on_line: OnLine, on_progress: Progress) -> int:
        """Pass on what the job says until it has ended; its exit code, 1 when it has none. Ctrl-C stops the job: 130."""
        lines = _Lines(on_line, on_progress)
        try:
            details = self._until_end(job, lines)
        except KeyboardInterrupt:
            with contextlib.suppress(RuntimeError, OSError):  # it ended by itself, or its server is gone
                self._ask(lambda: self.client.stop_job(job), CONNECT_SECONDS)
            self._until_end(job, lines, seconds=STOP_SECONDS + 10)
            return EXIT_INTERRUPTED
        if details is None:
            on_line(f"error: lost the Ray cluster at `{self.address}`, and job `{job}` with it")
            if words := self.last_words():
                on_line(f"the last that it said\n{words}")
            on_line("\nhint: `--inline` (`launch.inline`) runs in this process without Ray")
            return 1
        return _exit_code(details, on_line)

    def _until_end(self, job: str, lines: _Lines, *, seconds: float = float("inf")) -> JobDetails | None:
        """The details of the ended job, after its last line; None when its server fell silent or the seconds have passed."""
        heard: queue.SimpleQueue[str | JobDetails] = queue.SimpleQueue()
        enough = threading.Event()
        for work in (self._tail, self._poll):
            threading.Thread(target=work, args=(job, heard, enough, lines.characters), daemon=True).start()
        deadline = time.monotonic() + seconds
        lost = time.monotonic() + self.lost_seconds
        try:
            while self.alive() and time.monotonic() < min(lost, deadline):
                with contextlib.suppress(queue.Empty):
                    news = heard.get(timeout=POLL_SECONDS)
                    if isinstance(news, str):
                        lines.feed(news)
                        continue
                    lost = time.monotonic() + self.lost_seconds
                    if news.status.is_terminal():
                        return news
            return None
        finally:
            enough.set()
            with contextlib.suppress(RuntimeError, OSError):  # what the log has beyond: the tail lags seconds behind
                lines.feed(self._ask(lambda: self.client.get_job_logs(job), CONNECT_SECONDS)[lines.characters :])
            lines.end()

    def _tail(self, job: str, heard: queue.SimpleQueue[Any], enough: threading.Event, skip: int) -> None:
        """Hand over the log from character `skip` on as it grows; a connection that breaks is made again."""
        import aiohttp

        position = skip

        async def once() -> None:
            nonlocal position
            start = 0  # every connection sends the log from its beginning
            async for text in self.client.tail_job_logs(job):
                if enough.is_set():
                    return
                new = text[max(0, position - start) :]
                start += len(text)
                if new:
                    position += len(new)
                    heard.put(new)

        while not enough.is_set():
            try:
                asyncio.run(once())
                return
            except (RuntimeError, aiohttp.ClientError, OSError):  # all that its client raises for a broken connection
                enough.wait(2 * POLL_SECONDS)

    def _poll(self, job: str, heard: queue.SimpleQueue[Any], enough: threading.Event, _skip: int) -> None:
        while not enough.is_set():
            with contextlib.suppress(RuntimeError, OSError):  # silence is counted by whoever listens
                heard.put(self.client.get_job_info(job))
            enough.wait(POLL_SECONDS)

    def _ask(self, call: Callable[[], T], seconds: float | None = None) -> T:
        """What the call returns or raises; TimeoutError when it does neither, by default within `lost_seconds`."""
        answer: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                value = call()
            except (RuntimeError, OSError) as error:
                answer.put(lambda error=error: _throw(error))
            else:
                answer.put(lambda: value)

        threading.Thread(target=ask, daemon=True).start()
        deadline = time.monotonic() + (self.lost_seconds if seconds is None else seconds)
        while time.monotonic() < deadline and (self.alive() or not answer.empty()):
            with contextlib.suppress(queue.Empty):
                return answer.get(timeout=POLL_SECONDS)()
        raise TimeoutError("it does not answer")


def _throw(error: Exception) -> Any:
    raise error


def _exit_code(details: JobDetails, on_line: OnLine) -> int:
    code: int | None = details.driver_exit_code
    if details.status == "STOPPED":
        on_line("the job was stopped")
        return EXIT_INTERRUPTED
    if code is None:  # it never began, or its node went away
        said = str(details.message).strip().splitlines()  # Ray's reasons are long, and it has said them in the log of the job
        on_line(f"error: the job ended without an exit code: {said[0] if said else 'no reason was given'}")
        return 1
    if code not in (0, 1, 2, EXIT_INTERRUPTED):
        on_line(f"error: the job was killed by signal {-code}" if code < 0 else f"error: the job ended with exit code {code}")
        return 1
    return code


class _Lines:
    """Cuts text into lines and sorts them: progress, the words of Ray itself (dropped), and the rest."""

    def __init__(self, on_line: OnLine, on_progress: Progress) -> None:
        self._on_line = on_line
        self._on_progress = on_progress
        self._partial = ""
        self.characters = 0  # of the log, so far

    def feed(self, text: str) -> None:
        self.characters += len(text)
        *whole, self._partial = (self._partial + text).split("\n")
        for line in whole:
            self._pass_on(line)

    def end(self) -> None:
        line, self._partial = self._partial, ""
        if line:
            self._pass_on(line)

    def _pass_on(self, line: str) -> None:
        event = parse(line)
        if event is not None:
            self._on_progress(event)
        elif not line.startswith("Running entrypoint for job ") and "Runtime env is setting up" not in line:
            self._on_line(line)
