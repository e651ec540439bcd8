"""A Ray head of our own, for one run: on loopback, on free ports, behind a token, and gone afterwards with all its processes."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from http import HTTPStatus
from pathlib import Path
from types import TracebackType

import httpx

from tau2rl import settings
from tau2rl.errors import UserError
from tau2rl.launch.keeper import AT_ONCE

START_TIMEOUT_SECONDS = 180.0
STOP_TIMEOUT_SECONDS = 30.0
OBJECT_STORE_BYTES = 256 * 1024 * 1024  # paths and scores pass through it, not tensors; memory is taken as it fills
_PORT_TAKEN = "already occupied"


class LocalHead:
    """Starts on entry, ends on exit; `with LocalHead() as head: JobSubmissionClient(head.address, headers=head.headers)`.

    Ray has no users: whoever reaches its ports runs code as us. So the ports are bound to loopback and ask for a token that
    only the environment of our own processes holds (a Ray that does not know tokens yet ignores it).
    """

    def __init__(self, *, num_cpus: int | None = None, num_gpus: int | None = None, training: bool = False) -> None:
        """Default: what Ray finds on this machine. `training`: for jobs with actors of their own, as slime's are.

        Batches pass through its object store, so it is as large as Ray makes it, and the words of actors reach their driver.
        """
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._training = training
        self._keeper: subprocess.Popen[bytes] | None = None
        self.address = ""
        self.headers: dict[str, str] = {}

    def __enter__(self) -> LocalHead:
        for last in (False, False, True):  # a port that was free when we asked may be taken when Ray binds it
            try:
                self._start()
                return self
            except UserError as error:
                self.stop()
                if last or _PORT_TAKEN not in error.message:
                    raise
            except BaseException:
                self.stop()
                raise
        raise AssertionError("unreachable")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop(at_once=kind is None)

    @property
    def pid(self) -> int:
        """Of the process that owns the head; every process of the head is below it."""
        assert self._keeper is not None, "the head is not running"
        return self._keeper.pid

    def alive(self) -> bool:
        """Whether it stands: False before entry, after exit, and when it broke down by itself."""
        return self._keeper is not None and self._keeper.poll() is None

    def stop(self, *, at_once: bool = False) -> None:
        """End it and wait until everything is gone; safe to call twice.

        `at_once`: its jobs were followed to their end, so nothing below it has anything left to write.
        """
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        assert keeper.stdin is not None and keeper.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            if at_once:
                keeper.stdin.write(AT_ONCE)
            keeper.stdin.close()
        with keeper.stdout:
            keeper.wait(STOP_TIMEOUT_SECONDS)

    def _start(self) -> None:
        # Ray's socket paths are below this folder and may have 107 bytes: not $TMPDIR, which can be long.
        folder = Path(tempfile.mkdtemp(prefix="tau2rl-", dir="/tmp" if os.access("/tmp", os.W_OK) else None))  # noqa: S108
        try:
            token = secrets.token_hex(32)
            dashboard, agent, client, metrics = _free_ports(4)
            self.address = f"http://127.0.0.1:{dashboard}"
            self.headers = {"Authorization": f"Bearer {token}"}
            ray = self._command(folder, dashboard, agent, client)
            self._keeper = subprocess.Popen(
                [settings.python(), "-m", "tau2rl.launch.keeper", str(folder), *ray],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=settings.child_environment(_environment(token, metrics)),
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
            "num-cpus": self._num_cpus,
            "num-gpus": self._num_gpus,
        }
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        # ray.scripts.scripts is what the `ray` command calls; as a module it needs no `ray` on PATH.
        flags = ["--head", "--block", "--disable-usage-stats", "--no-monitor"]  # the monitor adds nodes to a cluster
        return [settings.python(), "-m", "ray.scripts.scripts", "start", *flags, *given]

    def _wait_until_ready(self, ports: tuple[int, ...]) -> None:
        assert self._keeper is not None
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        # A port is asked first: a request of HTTP takes 30 ms of CPU, on cores that the head wants to start on.
        while not (all(map(_accepts, ports)) and _answers(f"{self.address}/api/version", self.headers)):
            if self._keeper.poll() is not None:
                assert self._keeper.stdout is not None
                words = self._keeper.stdout.read().decode(errors="replace").strip()
                raise UserError(f"the local Ray head did not start\n{words[-2000:]}", hint=_HINT)
            if time.monotonic() > deadline:
                raise UserError(f"the local Ray head did not answer within {START_TIMEOUT_SECONDS:.0f} seconds", hint=_HINT)
            time.sleep(0.1)


_HINT = "`--inline` runs in this process without Ray; `--address` uses a cluster that is running"


def _environment(token: str, metrics_port: int) -> dict[str, str]:
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # without it Ray turns 127.0.0.1 into this machine's public address
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",  # the job needs a worker with an environment of its own
        "DASHBOARD_METRIC_PORT": str(metrics_port),
    }


def _free_ports(count: int) -> list[int]:
    """Different ports of loopback that nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _answers(url: str, headers: dict[str, str]) -> bool:
    try:
        return httpx.get(url, headers=headers, timeout=5, trust_env=False).status_code == HTTPStatus.OK
    except httpx.TransportError:
        return False


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
