"""A Ray head of our own, for one run: on loopback, on free ports, behind a token, and gone afterwards with all its processes."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from http import HTTPStatus
from pathlib import Path
from types import TracebackType

from tau2rl import settings
from tau2rl.doctor.services import answers, connects
from tau2rl.errors import UserError
from tau2rl.launch import supervisor

START_TIMEOUT_SECONDS = 180.0
STOP_TIMEOUT_SECONDS = 30.0
OBJECT_STORE_BYTES = 256 * 1024 * 1024  # paths and scores pass through it, not tensors; memory is taken as it fills
LAST_CHARACTERS = 2000  # of what a head said, when it broke
_HINT = "`--inline` runs in this process without Ray; `--address` uses a cluster that is running"


class _Ended(UserError):
    """A head that ended by itself before it answered."""


class LocalHead:
    """Starts on entry, ends on exit; `with LocalHead() as head: JobSubmissionClient(head.address, headers=head.headers)`.

    Ray has no users: whoever reaches its ports runs code as us. So the ports are bound to loopback and ask for a token that
    only the environment of our own processes holds (a Ray that does not know tokens yet ignores it).
    """

    def __init__(self, *, training: bool = False) -> None:
        """With all that Ray finds on this machine. `training`: for jobs with actors of their own, as slime's are.

        Batches pass through its object store, so it is as large as Ray makes it, and the words of actors reach their driver.
        """
        self._training = training
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._folder, self._token = Path(), ""
        self.address = ""
        self.headers: dict[str, str] = {}
        self.job_variables = {"TMPDIR": tempfile.gettempdir()}  # jobs are no part of the head: compiled kernels are kept there

    def __enter__(self) -> LocalHead:
        settings.loopback_without_proxy()
        with contextlib.ExitStack() as unless_it_stands:
            unless_it_stands.callback(self.stop)
            try:
                self._start()
            except _Ended:  # a port that was free when we asked may be taken when Ray binds it
                self.stop()
                self._start()
            unless_it_stands.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the process that owns the head; every process of the head is below it."""
        assert self._supervisor is not None, "the head is not running"
        return self._supervisor.pid

    def alive(self) -> bool:
        """Whether it stands: False before entry, after exit, and when it broke down by itself."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def last_words(self) -> str:
        """The last lines of a head that broke down; "" while it stands."""
        if self._supervisor is None or self.alive() or self._supervisor.stdout is None:
            return ""
        return self._supervisor.stdout.read().decode(errors="replace").strip()[-LAST_CHARACTERS:]

    def stop(self) -> None:
        """End it and wait until everything is gone; safe to call twice."""
        process, self._supervisor = self._supervisor, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        with process.stdout:
            process.wait(STOP_TIMEOUT_SECONDS)
        if process.returncode < 0:  # killed; should both supervisors have been, at once, nobody has ended the head
            supervisor.kill_session(process.pid, self._token)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        # Ray's socket paths are below this folder and may have 107 bytes: not $TMPDIR, which can be long.
        folder = Path(tempfile.mkdtemp(prefix="tau2rl-", dir="/tmp" if os.access("/tmp", os.W_OK) else None))  # noqa: S108
        token = secrets.token_hex(32)
        self._folder, self._token = folder, token
        dashboard, agent, client, metrics = _free_ports(4)
        self.address = f"http://127.0.0.1:{dashboard}"
        self.headers = {"Authorization": f"Bearer {token}"}
        supervise = [settings.python(), "-I", "-S", supervisor.__file__, str(folder)]
        try:
            self._supervisor = subprocess.Popen(
                [*supervise, *supervise, *self._command(folder, dashboard, agent, client)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=settings.child_environment(_environment(folder, token, metrics)),
                cwd=folder,  # Python puts it on the path of every process: the user's files must not hide libraries
                start_new_session=True,  # Ctrl-C in the terminal is ours to handle, not the head's
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # Ray's client takes a second to import, which the head starts in anyway.
        importlib.import_module("ray.job_submission")
        self._wait_until_ready((dashboard, agent))

    def _command(self, folder: Path, dashboard: int, agent: int, client: int) -> list[str]:
        options = {
            "node-ip-address": "127.0.0.1",
            "port": 0,  # Ray picks
            "dashboard-host": "127.0.0.1",
            "dashboard-port": dashboard,
            "dashboard-agent-listen-port": agent,
            "ray-client-server-port": client,  # cannot be switched off, and its default is the same for everybody
            "metrics-export-port": 0,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "object-store-memory": None if self._training else OBJECT_STORE_BYTES,
            "temp-dir": folder / "ray",  # below ours, because Ray opens its own to everybody
            "include-dashboard": "true",  # the job server is part of it
            # A job's own output reaches us through the job server; that of its actors only through the monitor.
            "include-log-monitor": "true" if self._training else "false",
        }
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        # ray.scripts.scripts is what the `ray` command calls; as a module it needs no `ray` on PATH.
        flags = ["--head", "--block", "--disable-usage-stats", "--no-monitor"]  # the monitor adds nodes to a cluster
        return [_python_for_shells(folder), "-m", "ray.scripts.scripts", "start", *flags, *given]

    def _wait_until_ready(self, ports: tuple[int, ...]) -> None:
        assert self._supervisor is not None
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        # A port is asked first: a request of HTTP takes CPU time, on cores that the head wants to start on.
        while not (all(map(_accepts, ports)) and answers(f"{self.address}/api/version", headers=self.headers) == HTTPStatus.OK):
            if self._supervisor.poll() is not None:
                raise _Ended(f"the local Ray head did not start\n{self.last_words()}", hint=_HINT)
            if time.monotonic() > deadline:
                raise UserError(f"the local Ray head did not answer within {START_TIMEOUT_SECONDS:.0f} seconds", hint=_HINT)
            time.sleep(0.1)


def _python_for_shells(folder: Path) -> str:
    """The interpreter by a path that a shell reads as one word: where it is not one, by a link to its environment in `folder`.

    Ray writes the paths of its interpreter and of its own package into lines of shell without quotes (`exec {python} ...`,
    `_private/runtime_env/context.py`), so from a folder with a space no process of a job would start.
    """
    python = Path(settings.python())
    if shlex.quote(str(python)) == str(python):
        return str(python)
    link = folder / "python"
    link.symlink_to(sys.prefix)
    return str(link / python.relative_to(sys.prefix)) if python.is_relative_to(sys.prefix) else str(python)


def _environment(folder: Path, token: str, metrics_port: int) -> dict[str, str]:
    return {
        "TMPDIR": str(folder),  # the dashboard has sockets there, which it leaves behind when it is killed
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # without it Ray turns 127.0.0.1 into this machine's public address
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",  # a head that may not report reports that it may not
        # Ray would end a small run because something else has filled the machine; the kernel ends what is large.
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_prestart_worker_first_driver": "0",  # the job needs a worker with an environment of its own
        "DASHBOARD_METRIC_PORT": str(metrics_port),
    }


def _accepts(port: int) -> bool:
    return connects(f"127.0.0.1:{port}", default_port=port)


def _free_ports(count: int) -> list[int]:
    """Different ports of loopback that nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
