"""What slime's processes find in their environment: the driver in its own, its actors through Ray. Paths cross, keys never.

Actors do not inherit the environment of the driver that makes them; they have that of the `ray start` on their machine, and on
top the `env_vars` of the job's runtime environment. A driver takes those from the variable below, which Ray sets for a job's
command and `ray.init` reads (ray/dashboard/modules/job/job_supervisor.py `_get_driver_env_vars`, ray/_private/worker.py `init`),
so what is written there reaches every actor of slime. Anyone who sees the dashboard sees it too.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from tau2rl import settings

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # ray/_private/runtime_env/constants.py
LISTS = {"PYTHONPATH": ":", "no_proxy": ",", "NO_PROXY": ","}  # added to, in place of replaced
NO_PROXY = ("no_proxy", "NO_PROXY")
HOST_IP = "SLIME_HOST_IP"  # slime/utils/http_utils.py
WANDB_HOST = "api.wandb.ai"
ASK_SECONDS = 60.0
_ASK_CLUSTER = "import ray; ray.init(log_to_driver=False); r = ray.cluster_resources(); print(r.get('GPU', 0), r.get('CPU', 0))"


def child_environment(present: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of slime's driver: the present one with ours, the same for its actors by way of the job's description.

    >>> made = child_environment({"HOME": "/h", "PYTHONPATH": "/a"}, {"PYTHONPATH": "/slime", "X": "1"})
    >>> made["PYTHONPATH"], json.loads(made[JOB_CONFIG])["runtime_env"]["env_vars"]
    ('/slime:/a', {'PYTHONPATH': '/slime:/a', 'X': '1'})
    """
    shared = {name: _joined(name, value, present.get(name)) for name, value in ours.items()}
    return {**present, **shared, JOB_CONFIG: json.dumps(_job_config(present.get(JOB_CONFIG), shared))}


def shared_variables(present: Mapping[str, str], made: Mapping[str, str]) -> dict[str, str]:
    """What slime's processes need on every machine: what the backend says, no proxy among themselves, where the keys are.

    slime's routers and engines listen on this machine's own address, not on loopback. With several machines the others'
    addresses have to be in `no_proxy` already, where there is a proxy at all.

    >>> sorted(shared_variables({"TAU2RL_SECRETS_FILE": "/keys", "OPENAI_API_KEY": "sk"}, {"X": "1"}))
    ['NO_PROXY', 'TAU2RL_SECRETS_FILE', 'X', 'no_proxy']
    """
    named = present.get(settings.SECRETS_FILE)
    direct = ",".join(dict.fromkeys(("127.0.0.1", "localhost", own_address(present))))
    return {**dict.fromkeys(NO_PROXY, direct), **made, **({settings.SECRETS_FILE: str(Path(named).absolute())} if named else {})}


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
        except OSError:  # no way out: the address of the machine's name, as slime takes it then
            return _address_of_name()
        return str(probe.getsockname()[0])


def cluster_size(present: Mapping[str, str]) -> tuple[int | None, int | None]:
    """GPUs and cores of the whole cluster that this job runs on; None outside a job, and where the cluster does not say."""
    if JOB_CONFIG not in present:
        return None, None
    command = [settings.python(), "-c", _ASK_CLUSTER]  # in a process of its own: connecting takes over signals and output
    try:
        asked = subprocess.run(command, env=dict(present), capture_output=True, text=True, timeout=ASK_SECONDS, check=True)
        gpus, cores = asked.stdout.split()[-2:]
        return int(float(gpus)), int(float(cores))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None, None


@contextmanager
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


def _address_of_name() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


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
