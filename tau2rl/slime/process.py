"""slime as a child process of our job: the variables that it and its actors get, its start, its end.

Ray sets `RAY_JOB_CONFIG_JSON_ENV_VAR` for a job's command, which makes the child a driver of the same cluster and job. Our
variables go into that description, so that every actor of slime has them. The dashboard shows them to anyone: none is a key.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit

import tau2rl
from tau2rl import settings
from tau2rl.backend import TrainingConfig
from tau2rl.config import GrpoConfig, SftConfig

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # ray/_private/runtime_env/constants.py
LISTS = {"PYTHONPATH": ":", "no_proxy": ",", "NO_PROXY": ","}  # added to, in place of replaced
HOST_IP = "SLIME_HOST_IP"  # slime/utils/http_utils.py
WANDB_HOST = "api.wandb.ai"
OWN_END_SECONDS = 1.0  # a terminal and Ray's `stop` signal the child too; it is asked again only where they did not
GRACE_SECONDS = 20.0  # for a driver to say goodbye to its cluster; less than Ray waits before it kills (launch/jobs.py)
LAST_LINES_SECONDS = 5.0  # for the last lines, where a process below the child still holds its output

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def script(config: TrainingConfig) -> Path:
    """The program of slime that trains: `train_async.py` where the next rollout is played while this one is trained on.

    `sft` has nothing to win by it, and would lose rows: the source of rows is saved when the next batch is drawn already, so that
    each `--resume` would pass over one.
    """
    overlap = isinstance(config, GrpoConfig) and config.slime.overlap
    return config.slime.root / ("train_async.py" if overlap else "train.py")


def slime_variables(config: TrainingConfig) -> dict[str, str]:
    """What slime's processes need whatever the machine."""
    ours = Path(tau2rl.__file__).parents[1]
    made = {
        # slime in front: both have a package `examples`, and slime's holds the correction of more than one token.
        "PYTHONPATH": f"{config.slime.root}:{config.slime.megatron}:{ours}",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # Megatron insists on it where GPUs share a layer or a sequence
        "NCCL_NVLS_ENABLE": "0",  # SGLang turns it off in its engines, which share a group with the trainer that sends weights
        "PYTHONUNBUFFERED": "1",
    }
    if isinstance(config, SftConfig):  # not beside engines that are put to sleep: their memory saver maps pages by itself
        made["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return made


def shared_variables(present: Mapping[str, str], made: Mapping[str, str]) -> dict[str, str]:
    """What slime's processes need on every machine: `made`, no proxy among themselves, where the keys are.

    slime's routers and engines listen on this machine's own address, not on loopback. With several machines the others'
    addresses have to be in `no_proxy` already, where there is a proxy at all.

    >>> sorted(shared_variables({"TAU2RL_SECRETS_FILE": "/keys", "OPENAI_API_KEY": "sk"}, {"X": "1"}))
    ['NO_PROXY', 'TAU2RL_SECRETS_FILE', 'X', 'no_proxy']
    """
    direct = ",".join(dict.fromkeys(("127.0.0.1", "localhost", own_address(present))))
    keys = present.get(settings.SECRETS_FILE)
    return {
        **dict.fromkeys(("no_proxy", "NO_PROXY"), direct),
        **made,
        **({settings.SECRETS_FILE: str(Path(keys).absolute())} if keys else {}),
    }


def slime_environment(present: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of slime's driver: the present one with ours, the same for its actors by way of the job's description.

    >>> made = slime_environment({"HOME": "/h", "PYTHONPATH": "/a"}, {"PYTHONPATH": "/slime", "X": "1"})
    >>> made["PYTHONPATH"], json.loads(made[JOB_CONFIG])["runtime_env"]["env_vars"]
    ('/slime:/a', {'PYTHONPATH': '/slime:/a', 'X': '1'})
    """
    shared = {name: _joined(name, value, present.get(name)) for name, value in ours.items()}
    return {**present, **shared, JOB_CONFIG: json.dumps(_job_config(present.get(JOB_CONFIG), shared))}


def own_address(present: Mapping[str, str]) -> str:
    """The address at which slime serves on this machine: what it is told, else that of the way out; nothing is sent.

    >>> own_address({"SLIME_HOST_IP": "10.0.0.5"})
    '10.0.0.5'
    """
    if told := present.get(HOST_IP):
        return told
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 80))
            return str(probe.getsockname()[0])
        except OSError:  # no way out: the address of the machine's name, as slime takes it then
            with contextlib.suppress(OSError):
                return socket.gethostbyname(socket.gethostname())
            return "127.0.0.1"


@contextlib.contextmanager
def tracker_login(key: str | None, *, base_url: str | None = None) -> Generator[dict[str, str]]:
    """A `NETRC` file for W&B in slime's actors, which log in by themselves; its path is all that they are told.

    It is readable by its owner alone, outside the run folder, and gone afterwards. None: nobody needs to log in.
    """
    if not key:
        yield {}
        return
    host = urlsplit(base_url or "").hostname or WANDB_HOST
    folder = Path(tempfile.mkdtemp(prefix="tau2rl-"))
    try:
        file = folder / "netrc"
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(f"machine {host}\n  login user\n  password {key}\n")
        yield {"NETRC": str(file)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_child(command: Sequence[str], *, environment: Mapping[str, str], on_line: Callable[[str], None], cwd: Path) -> int:
    """Run a program to its end; its exit code, negative for the signal that killed it.

    `on_line` gets each line of its output and errors, in a thread of its own. It reads no input. Whatever ends us ends it:
    an exception here (Ctrl-C) ends it by SIGTERM, then SIGKILL, and on Linux it does not outlive a `kill -9` of this process.
    It stays in our process group, which is what Ray ends when a job's supervisor dies.
    """
    libc = _libc()

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=cwd,
        text=True,
        encoding="utf-8",
        errors="replace",
        preexec_fn=die_with_parent,
    )
    assert child.stdout is not None
    reader = _Reader(child.stdout, on_line)
    reader.start()
    try:
        code = child.wait()
    finally:
        _end(child)
        reader.join(LAST_LINES_SECONDS)
    if reader.error is not None:
        raise reader.error
    return code


class _Reader(threading.Thread):
    """Takes lines until there are none, whatever becomes of them: a pipe that nobody reads would stop the child."""

    def __init__(self, stream: IO[str], on_line: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._on_line = on_line
        self.error: OSError | None = None

    def run(self) -> None:
        with contextlib.suppress(ValueError):  # closed by the interpreter's end
            for line in self._stream:
                self._pass_on(line.rstrip("\n"))

    def _pass_on(self, line: str) -> None:
        if self.error is None:
            try:
                self._on_line(line)
            except OSError as error:  # a full disk: told when the child has ended, not by killing hours of its work
                self.error = error


def _end(child: subprocess.Popen[str]) -> None:
    """Wait a moment, then ask, then insist; nothing where it has ended."""
    for seconds, send in ((OWN_END_SECONDS, child.terminate), (GRACE_SECONDS, child.kill)):
        try:
            child.wait(0 if child.poll() is not None else seconds)
            return
        except subprocess.TimeoutExpired:
            send()
    child.wait()


def _libc() -> ctypes.CDLL | None:
    with contextlib.suppress(OSError):
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "prctl") else None
    return None


def _joined(name: str, value: str, present: str | None) -> str:
    separator = LISTS.get(name)
    if separator is None or not present:
        return value
    return separator.join(dict.fromkeys([*value.split(separator), *present.split(separator)]))


def _job_config(text: str | None, variables: Mapping[str, str]) -> dict[str, Any]:
    job = cast("dict[str, Any]", json.loads(text or "{}"))
    runtime = cast("dict[str, Any]", job.get("runtime_env") or {})
    known = cast("dict[str, str]", runtime.get("env_vars") or {})
    return {**job, "runtime_env": {**runtime, "env_vars": {**known, **variables}}, "metadata": job.get("metadata") or {}}
