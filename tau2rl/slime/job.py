"""What crosses over from a config into slime's job: paths, files written before the start, and the way back from `args`.

Settings reach our hooks by `--custom-config-path` alone: one YAML file, one key `tau2rl` in it, which slime puts on `args`.
Nothing secret is in it: the dashboard and the trackers show `args` to anyone.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import yaml

import tau2rl
from tau2rl import plugins, settings
from tau2rl.config import GrpoConfig, SftConfig, UserConfig, build, dump
from tau2rl.slime.layout import layout_of, sglang_config
from tau2rl.slime.model import ModelShape
from tau2rl.slime.objective import mismatch_settings

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


KEY = "tau2rl"  # of `args`, and of the YAML file
HOOKS = "tau2rl.slime.hooks"
CURRICULUM = "tau2rl.slime.data_source"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimeRun:
    """Where a run keeps what: `SlimeRun(folder=Path("/data/outputs/grpo/first"), shape=read_shape(checkpoint))`."""

    folder: Path  # absolute: slime's actors have working directories of their own
    shape: ModelShape | None  # None: the checkpoint is not at hand, and the options that build the model are left out

    @property
    def own(self) -> Path:
        """What is written for slime."""
        return self.folder / "slime"

    @property
    def prompts(self) -> Path:
        """The tasks, or for `sft` the conversations, that are trained on."""
        return self.own / "prompts.jsonl"

    @property
    def eval_prompts(self) -> Path:
        """The tasks by which one looks at the training."""
        return self.own / "eval_prompts.jsonl"

    @property
    def custom_config(self) -> Path:
        """What `--custom-config-path` names."""
        return self.own / "custom_config.yaml"

    @property
    def sglang_config(self) -> Path:
        """What `--sglang-config` names."""
        return self.own / "sglang_config.yaml"

    @property
    def dumps(self) -> Path:
        """slime's dumps of every round."""
        return self.own / "dumps"

    @property
    def save(self) -> Path:
        """Megatron's checkpoints, from which an interrupted run goes on."""
        return self.folder / "checkpoints" / "megatron"

    @property
    def save_hf(self) -> Path:
        """Hugging Face directories beside them; slime fills in the number of the round."""
        return self.folder / "checkpoints" / "hf" / "{rollout_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What a hook has: the settings of the run and its folder."""

    config: SftConfig | GrpoConfig
    folder: Path

    @property
    def grpo(self) -> GrpoConfig:
        """The settings, where the hook is one of rollouts."""
        assert isinstance(self.config, GrpoConfig)
        return self.config


def custom_config(config: SftConfig | GrpoConfig, run: SlimeRun) -> dict[str, Any]:
    """The content of `--custom-config-path`; the keys beside `tau2rl` are those that slime's own code looks for on `args`."""
    handed: dict[str, Any] = {"folder": str(run.folder), "stage": config.stage, "config": dump(config)}
    if plugins.references(handed["config"]):
        handed["path"] = list(sys.path)  # where this process found them; slime's own look elsewhere
    beside = mismatch_settings(config.algo) if isinstance(config, GrpoConfig) else {}
    return {KEY: handed, **beside}


def write(config: SftConfig | GrpoConfig, run: SlimeRun) -> None:
    """Write the two YAML files; prompts are written by whoever has the tasks."""
    run.own.mkdir(parents=True, exist_ok=True)
    _write_yaml(run.custom_config, custom_config(config, run))
    engines = sglang_config(config.slime, layout_of(config))
    if engines is not None:
        _write_yaml(run.sglang_config, engines)


def received(args: Any) -> Received:
    """The settings on slime's `args`, read once a process."""
    handed = cast("Mapping[str, Any]", getattr(args, KEY))
    return _received(yaml.safe_dump(dict(handed)))


@cache
def _received(text: str) -> Received:
    handed = yaml.safe_load(text)
    kind: type[SftConfig] | type[GrpoConfig] = {"sft": SftConfig, "grpo": GrpoConfig}[handed["stage"]]
    config = build(kind, handed["config"])
    plugins.search(handed.get("path", ()))
    return Received(config=config, folder=Path(handed["folder"]))


def user_config(config: GrpoConfig, url: str | None) -> UserConfig:
    """The customer's settings, with the server that the job started filled in where it serves the customer.

    `url` is that server's, up to `/v1`.
    """
    if not config.slime.user.gpus:
        return config.user
    assert url is not None
    return config.user.model_copy(update={"model": f"openai/{config.slime.user.name}", "api_base": url})


def absolute(config: SftConfig | GrpoConfig) -> SftConfig | GrpoConfig:
    """The config with paths that hold in any working directory. A tokenizer's name that is no directory stays a name."""
    values = dump(config)
    values["model"]["init"] = _absolute(values["model"]["init"])
    if values["slime"]["user"]["checkpoint"]:
        values["slime"]["user"]["checkpoint"] = _absolute(values["slime"]["user"]["checkpoint"])
    chat = values.get("chat")
    if chat:
        for key in ("tokenizer", "cookbook_prompt"):
            if chat[key] and Path(chat[key]).expanduser().exists():
                chat[key] = _absolute(chat[key])
    return build(type(config), values)


def script(config: SftConfig | GrpoConfig) -> Path:
    """The program of slime that trains: the one that plays ahead where that is asked for.

    `sft` has nothing to win by it, and would lose rows: the source of rows is saved when the next batch is drawn already, so that
    each `--resume` would pass over one.
    """
    ahead = isinstance(config, GrpoConfig) and config.slime.overlap
    return config.slime.root / ("train_async.py" if ahead else "train.py")


def environment(config: SftConfig | GrpoConfig) -> dict[str, str]:
    """Variables of slime's job, for Ray's `runtime_env`, which anyone can read: no key is among them."""
    ours = Path(tau2rl.__file__).parents[1]
    variables = {
        # slime in front: both have a package `examples`, and slime's holds the correction of more than one token.
        "PYTHONPATH": f"{config.slime.root}:{config.slime.megatron}:{ours}",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # Megatron insists on it where GPUs share a layer or a sequence
        "NCCL_NVLS_ENABLE": "0",  # SGLang turns it off in its engines, which share a group with the trainer that sends weights
        "PYTHONUNBUFFERED": "1",
    }
    if isinstance(config, SftConfig):  # not beside engines that are put to sleep: their memory saver maps pages by itself
        variables["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return variables


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True), encoding="utf-8")
    draft.replace(path)
