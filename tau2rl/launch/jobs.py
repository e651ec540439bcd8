"""A command as a Ray job: submitted, followed to its end, stopped when we are."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from tau2rl.errors import UserError
from tau2rl.launch.processes import EXIT_INTERRUPTED
from tau2rl.runs.progress import Progress, parse

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

CONNECT_SECONDS = 5.0
POLL_SECONDS = 0.5
LOST_SECONDS = 120.0  # without a word from the job server, the job counts as lost
STOP_SECONDS = 30  # between SIGTERM and SIGKILL: episodes in flight are closed, records are written

OnLine = Callable[[str], None]


def require_ray() -> None:
    """Raise UserError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "Ray is not installed", hint="pip install -e '.[ray]' in the clone of tau2rl, or run in this process with `--inline`"
        )


def connect(address: str, headers: dict[str, str] | None = None) -> JobSubmissionClient:
    """A client of the job server at `http://HOST:8265`, or of the cluster at `HOST:PORT`, `ray://HOST:PORT` or `auto`.

    Raises UserError within seconds when nobody answers there.
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
    return client


def submit_command(client: JobSubmissionClient, command: str, *, label: str) -> str:
    """Submit a shell command; the id of the job. Raises UserError."""
    job = f"tau2rl-{label}-{secrets.token_hex(4)}"
    # Nothing but this in the environment of the job: the dashboard shows it to everybody.
    environment = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}
    try:
        return client.submit_job(entrypoint=command, submission_id=job, runtime_env=environment)
    except (OSError, RuntimeError) as error:
        raise UserError(f"the cluster at `{client.get_address()}` did not take the job: {error}", hint=_ADDRESS_HINT) from None


def follow(
    client: JobSubmissionClient, job: str, *, on_line: OnLine, on_progress: Progress, alive: Callable[[], bool] = lambda: True
) -> int:
    """Pass on what the job says until it has ended; its exit code, 1 when it has none. Ctrl-C stops the job: 130.

    `alive`: whether the cluster still stands, where the caller can know.
    """
    lines = _Lines(on_line, on_progress)
    try:
        details = _until_end(client, job, lines, alive)
    except KeyboardInterrupt:
        with contextlib.suppress(RuntimeError, OSError):  # it ended by itself, or its server is gone
            client.stop_job(job)
        _until_end(client, job, lines, alive, seconds=STOP_SECONDS + 10)
        return EXIT_INTERRUPTED
    if details is None:
        on_line(f"error: lost the Ray cluster at `{client.get_address()}`, and job `{job}` with it")
        return 1
    return _exit_code(details, on_line)


def _exit_code(details: JobDetails, on_line: OnLine) -> int:
    code: int | None = details.driver_exit_code
    if details.status == "STOPPED":
        on_line("the job was stopped")
        return EXIT_INTERRUPTED
    if code is None:  # it never began, or its node went away
        on_line(f"error: the job ended without an exit code: {details.message}")
        return 1
    if code not in (0, 1, 2, EXIT_INTERRUPTED):
        on_line(f"error: the job was killed by signal {-code}" if code < 0 else f"error: the job ended with exit code {code}")
        return 1
    return code


def _until_end(
    client: JobSubmissionClient, job: str, lines: _Lines, alive: Callable[[], bool], *, seconds: float = float("inf")
) -> JobDetails | None:
    """The details of the ended job, after its last line; None when its server fell silent or the seconds have passed.

    Ray's client has no timeouts, so it is only called in threads that may hang and are left behind when they do.
    """
    heard: queue.SimpleQueue[str | JobDetails] = queue.SimpleQueue()
    enough = threading.Event()
    for work in (_tail, _poll):
        threading.Thread(target=work, args=(client, job, heard, enough, lines.characters), daemon=True).start()
    deadline = time.monotonic() + seconds
    lost = time.monotonic() + LOST_SECONDS
    try:
        while alive() and time.monotonic() < min(lost, deadline):
            with contextlib.suppress(queue.Empty):
                news = heard.get(timeout=POLL_SECONDS)
                if isinstance(news, str):
                    lines.feed(news)
                    continue
                lost = time.monotonic() + LOST_SECONDS
                if news.status.is_terminal():
                    return news
        return None
    finally:
        enough.set()
        _rest(client, job, lines)


def _tail(client: JobSubmissionClient, job: str, heard: queue.SimpleQueue[Any], enough: threading.Event, skip: int) -> None:
    """Hand over the log from character `skip` on as it grows; a connection that breaks is made again."""
    import aiohttp

    position = skip

    async def once() -> None:
        nonlocal position
        start = 0  # every connection sends the log from its beginning
        async for text in client.tail_job_logs(job):
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


def _poll(client: JobSubmissionClient, job: str, heard: queue.SimpleQueue[Any], enough: threading.Event, _skip: int) -> None:
    while not enough.is_set():
        with contextlib.suppress(RuntimeError, OSError):  # silence is counted by whoever listens
            heard.put(client.get_job_info(job))
        enough.wait(POLL_SECONDS)


def _rest(client: JobSubmissionClient, job: str, lines: _Lines) -> None:
    """What the log has beyond the lines that were passed on: the tail lags seconds behind."""
    answer: list[str] = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError, OSError):
            answer.append(client.get_job_logs(job))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(CONNECT_SECONDS)
    if answer:
        lines.feed(answer[0][lines.characters :])
    lines.end()


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


_ADDRESS_HINT = "`--address http://HOST:8265` is the cluster's dashboard; without it a local head is started for the run"


def _reach(address: str, headers: dict[str, str]) -> None:
    """Raise UserError when nobody listens there: Ray's own client would try for a minute, or forever."""
    refused = UserError(f"no Ray cluster answers at `{address}`", hint=_ADDRESS_HINT)
    if address.startswith(("http://", "https://")):
        try:
            status = httpx.get(f"{address.rstrip('/')}/api/version", headers=headers, timeout=CONNECT_SECONDS).status_code
        except (httpx.HTTPError, httpx.InvalidURL):
            raise refused from None
        if status == HTTPStatus.NOT_FOUND:
            raise UserError(f"what answers at `{address}` is not Ray's job server", hint=_ADDRESS_HINT)
    elif address != "auto":
        parts = urlsplit(address if "://" in address else f"//{address}")
        try:
            with socket.create_connection((parts.hostname or "", parts.port or 6379), timeout=CONNECT_SECONDS):
                pass
        except (OSError, ValueError):
            raise refused from None
