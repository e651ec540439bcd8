"""Commands of the documents in small: a clone whose configs are small, and options that make a run short.

A run is made small by options behind its own, so that everything else is as a reader types it: two tasks of `mock`, the scripted
user, one optimizer step, the backend `local` in this process. `/models/...` and words in capitals are a model of random weights,
SGLang is a stub that samples the reference turns, and what `scripts/start_*.sh` start in its place answers `/health` alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from typer.testing import CliRunner

from tau2rl.chat import make_codec
from tau2rl.cli import app
from tau2rl.config import STAGES, ChatConfig, ShapeConfig
from tau2rl.env.tasks import gold_script
from tau2rl.train.tiny import create_tiny
from tau2rl.types import TaskRef
from tests.docs.blocks import ROOT, Command
from tests.stubs.http import Request, Response
from tests.stubs.openai import OpenAIStub
from tests.stubs.router import free_port
from tests.stubs.sglang import SGLangStub

TALK = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi!"}]
SHAPE = ShapeConfig(hidden=16, layers=1, heads=1, head_dim=16, intermediate=32, vocab_size=300)

SERVER = """#!/usr/bin/env bash
if [ "$1 $2" != "-m sglang.launch_server" ]; then exec "{python}" "$@"; fi
while [ "$1" != --port ]; do shift; done
mkdir -p "{folder}/answers" && cd "{folder}/answers" && touch health
exec -a sglang.launch_server "{python}" -m http.server --bind 127.0.0.1 "$2"
"""

PLAYED = ("--inline", "--num-samples", "2", "--limit", "2")
TRAINED = ("--inline", "--backend", "local", "--device", "cpu", "--steps", "1", "--set", "train.warmup_steps=0")
SFT = ("--set", "train.batch_size=2", "--set", "data.allow_empty=true")  # a model of random weights has no successes
LOCAL = ("--set", "local.device=cpu", "--set", "policy.sampling.max_tokens=32", "--set", "limits.max_turns=4")
GRPO = ("--set", "train.tasks_per_step=2", "--set", "sampling.max_tokens=32", "--set", "limits.max_turns=4")

GOLD = "--policy gold --inline --user-model scripted --protocol native --tokenizer models/Qwen3-4B-Instruct-2507"
MOCK = f"{GOLD} --domains mock --limit 3"
RETAIL = f"{GOLD} --domains retail --tasks.ids retail/17 --num-samples 1"
SAMPLED = "--tokenizer models/Qwen3-4B-Instruct-2507 --url URL --inline --user-model scripted --domains mock --limit 8"
LEARNS = "--inline --steps 1 --set train.save_every=1 --set train.warmup_steps=0"
# Runs that documents have a name for as anybody's: made when a command names one that is not there.
PROVIDED = {
    "outputs/eval/default": f"eval {RETAIL} --policy sglang --url URL",
    "outputs/eval/mine": f"eval {RETAIL} --name mine",
    "outputs/eval/my-checkpoint": f"eval {RETAIL} --name my-checkpoint",
    "outputs/eval/before": f"eval {MOCK} --policy do-nothing --task-split synth-test --name before",
    "outputs/eval/after": f"eval {MOCK} --task-split synth-test --name after",
    "outputs/eval/final": "eval --policy local --checkpoint outputs/grpo/default/checkpoints/final --inline "
    "--user-model scripted --domains mock --task-split synth-test --limit 1 --num-samples 2 --set policy.sampling.max_tokens=32 "
    "--set limits.max_turns=4 --name final",
    "outputs/eval/do-nothing": f"eval {MOCK} --policy do-nothing --task-split synth-test --name do-nothing",
    "outputs/eval/always-transfer": f"eval {MOCK} --policy always-transfer --task-split synth-test --name always-transfer",
    "outputs/eval/a": f"eval {MOCK} --task-split synth-train --name a",
    **{f"outputs/eval/train-{n}": f"eval {MOCK} --task-split synth-train --name train-{n}" for n in (1, 2)},
    **{f"outputs/eval/{name}": f"eval {MOCK} --task-split synth-test --name {name}" for name in ("gold", "grpo", "rft", "sft")},
    "outputs/seed/default": f"seed {MOCK} --task-split synth-train --limit 6",
    "outputs/seed/b": f"seed {MOCK} --task-split synth-train --set tasks.skip=6 --name b",
    "outputs/rft-filter/default": f"rft-filter {SAMPLED} --task-split synth-train --num-samples 2",
    "outputs/sft/default": f"sft --model models/Qwen3-4B-Instruct-2507 --data outputs/seed/default/rows.jsonl {LEARNS}",
    "outputs/grpo/default": f"grpo --model outputs/sft/default/checkpoints/final {LEARNS} --user-model scripted --domains mock "
    "--task-split synth-train --limit 2 --num-samples 2 --set train.tasks_per_step=2 --set sampling.max_tokens=32 "
    "--set val.domains=mock --set val.split=synth-select --set val.limit=1 --set val.num_samples=1 --set train.val_every=1",
    "outputs/pipeline/default": "run -c configs/laptop/pipeline.yaml --limit 1 --inline --name default",
    "data/retail-1": "synth --num-tasks 4 --seed 1 --output data/retail-1",
    "outputs/eval/retail": "import data/simulations/retail.json",
    "data/simulations/retail.json": "export outputs/eval/mine --to tau2 --output data/simulations",
}


class ReferenceTurns(SGLangStub):
    """Samples the turns that solve a task, of every second attempt the last one alone.

    The routing key of a request says whose turn it is: `mock/ID#2@SEED`.
    """

    def __init__(self, tokenizer: Path) -> None:
        super().__init__(context=1_000_000)
        self._codec = make_codec(ChatConfig(protocol="native", tokenizer=str(tokenizer)))
        self._said: dict[str, int] = {}

    async def reply(self, request: Request, mode: str) -> Response:
        if request.path == "/generate":
            session = unquote(request.headers["x-smg-routing-key"])
            key, _, attempt = session.partition("#")
            domain, _, task_id = key.partition("/")
            split = "-".join(task_id.split("-")[:2]) if task_id.startswith("synth-") else "base"
            turns = gold_script(TaskRef(domain=domain, task_id=task_id, split=split))
            first = len(turns) if attempt.startswith(("1", "3")) else -1
            at = self._said[session] = self._said.get(session, first) + 1
            ids = self._codec.write(turns[min(at, len(turns) - 1)])
            self.answer = lambda input_ids, params: ids
        return await super().reply(request, mode)


class World:
    """A folder in which the commands of a document are carried out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "models" / "Qwen3-4B-Instruct-2507"
        _make_clone(folder, self.model)
        self.server = ReferenceTurns(self.model)
        self.provided: set[str] = set()
        self.user = OpenAIStub(answer=_says)
        self.ports: dict[str, int] = {}  # script -> port
        self.words = {"DIR/tasks.json": "data/retail-1/tasks.json"}
        self.words |= {word: str(self.model) for word in ("DIR", "CHECKPOINT", "MODEL", "/models/Qwen3-4B-Instruct-2507")}
        rows = ("ROWS", "a.jsonl", "mine.jsonl", "a/rows.jsonl", "train.parquet", "data/mix.jsonl")
        self.words |= dict.fromkeys(rows, "outputs/seed/default/rows.jsonl")
        self.words |= dict.fromkeys(("WRIT-2K.parquet", "b/rows.jsonl", "val.parquet"), "outputs/seed/b/rows.jsonl")
        self.words |= {"outputs/eval/NAME": "outputs/eval/default"}

    def call(self, *words: str) -> Any:
        """A `tau2rl` command in this process; the result of the runner, whose exit code is not looked at here."""
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            return CliRunner().invoke(app, list(words), env={"COLUMNS": "400", "OPENAI_API_KEY": "none"})
        finally:
            os.chdir(before)

    def provide(self, words: Sequence[str]) -> None:
        """Make the runs that words name, where a document has a name for anybody's run."""
        for path, line in PROVIDED.items():
            named = any(re.search(rf"(^|=){path}(/|$)", word) for word in words)
            if named and not (self.folder / path).exists() and path not in self.provided:
                self.provided.add(path)
                made = [word.replace("URL", self.server.url) for word in line.split()]
                self.provide(made[1:])
                result = self.call(*made)
                assert result.exit_code == 0, f"{line}: {result.output}"
        _solve_one(self.folder / "outputs" / "grpo")

    def run(self, command: Command) -> None:
        """A command of a document, in small. Raises AssertionError with what it said where it fails."""
        words = [self._here(word) for word in command.words]
        if words[0] in ("export", "pip", "python3", ".", "hf"):  # keys, and what is installed already
            return
        if words[0].startswith("scripts/start_"):
            port = self.ports.setdefault(words[0], free_port())
            variables = {**command.variables, "PYTHON": str(self.folder / "server"), "PORT": str(port), "POLL": "0.1"}
            done = subprocess.run(
                [self.folder / words[0], *words[1:]], cwd=self.folder, env={**os.environ, **variables}, capture_output=True,
                text=True, check=False, timeout=60,
            )  # fmt: skip
            assert done.returncode == 0, f"{words}: {done.stderr}"
            return
        assert words[0] == "tau2rl", f"`{words[0]}` is nothing that is carried out here: mark the block `not run`"
        small = self.small(words[1:])
        if small[0] != "synth":  # it makes what it names
            self.provide(small)
        if small[0] in STAGES and "--resume" not in small:
            self._make_room(small)
        result = self.call(*small)
        if small[0] == "grpo":
            _solve_one(self.folder / "outputs" / "grpo")
        allowed = (0, 1) if small[0] in ("doctor", "config") else (0,)  # what this machine lacks, what differs
        said = "\n".join(line for line in result.output.splitlines()[-12:] if line.strip(" ─│╭╮╰╯"))
        assert result.exit_code in allowed, f"`{' '.join(words)}` ended with {result.exit_code}: {said}"

    def _here(self, word: str) -> str:
        """A word of a document with what stands here for its placeholders."""
        for name, value in self.words.items():
            word = re.sub(rf"(?<![\w./-]){re.escape(name)}(?![\w.-])", lambda _, value=value: value, word)
        return word

    def forget(self) -> None:
        """Take away all runs, those that were provided too."""
        shutil.rmtree(self.folder / "outputs", ignore_errors=True)
        self.provided.clear()

    def _make_room(self, words: list[str]) -> None:
        """Take away a run that was provided under the name of one that a document makes itself."""
        name = _value(words, "--name") or self._config(words).get("name", "default")
        path = f"outputs/{words[0]}/{name}"
        if path in self.provided:
            shutil.rmtree(self.folder / path)
            self.provided.remove(path)

    def _config(self, words: list[str]) -> dict[str, Any]:
        file = _value(words, "-c")
        return yaml.safe_load((self.folder / file).read_text("utf-8")) if file else {}

    def small(self, words: list[str]) -> list[str]:
        """A `tau2rl` command whose run is short."""
        stage = words[0]
        if (_value(words, "-c") or "").startswith("outputs/") or (stage == "rft-filter" and "--from" in words):
            return _with(words, "--inline") if stage in STAGES else words  # of runs that are small already
        values = self._config(words)
        match stage:
            case "data" if "--rows" in words:
                return _with(words, "--rows", "4")
            case "synth":
                return _with(words, "--num-tasks", "4")
            case "run":
                return _with(words, "--dry-run")  # tests/unit/recipes/test_pipeline.py carries some out
            case "sft":
                return _with(words, *TRAINED, *SFT, *self._start(words, values))
            case "grpo":
                tasks = self._tasks(words, "synth-train")
                return _with(words, *TRAINED, *GRPO, *PLAYED, *tasks, *self._start(words, values), *self._user(words, values))
            case "seed" | "rft-filter" | "eval":
                tasks = self._tasks(words, "synth-test" if stage == "eval" else "synth-train")
                once = ["--num-samples", "1"] if stage == "seed" else []
                return _with(words, *PLAYED, *once, *tasks, *self._agent(words, values), *self._user(words, values))
            case _:
                return words

    def _tasks(self, words: list[str], split: str) -> list[str]:
        if "--task-source" in words:
            return ["--set", "val.split=train-select"] if words[0] == "grpo" else []
        return ["--domains", "mock", "--task-split", split]

    def _agent(self, words: list[str], values: dict[str, Any]) -> list[str]:
        """Stubs in place of the servers of an agent."""
        kind = _value(words, "--policy") or values.get("policy", {}).get("kind") or ("gold" if words[0] == "seed" else "sglang")
        if kind == "sglang":
            return ["--url", self.server.url]
        if kind == "api":
            return ["--set", f"policy.api_base={self.user.api_base}", *(["--keep", "all"] if words[0] == "seed" else [])]
        return list(LOCAL) if kind == "local" else []

    def _user(self, words: list[str], values: dict[str, Any]) -> list[str]:
        """A stub in place of the server of a user's simulator."""
        user, given = values.get("user", {}), _value(words, "--user-model")
        if "scripted" in (given, user.get("kind")) or (words[0] == "seed" and not values and "--policy" not in words):
            return []
        return ["--set", f"user.api_base={self.user.api_base}"]

    def _start(self, words: list[str], values: dict[str, Any]) -> list[str]:
        """The model of random weights where a training starts from one that is published."""
        init = _value(words, "--model") or values.get("model", {}).get("init", "")
        return ["--model", str(self.model)] if init.startswith("/models/") else []


def _value(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def _with(words: list[str], *options: str) -> list[str]:
    """Words with options that replace those of the same name; `--set` adds, and `--detach` is for a cluster."""
    kept = [word for word in words if word != "--detach"]
    rest = list(options)
    while rest:
        name = rest.pop(0)
        value = [rest.pop(0)] if rest and not rest[0].startswith("--") else []
        if value and name in kept and name != "--set":
            kept[kept.index(name) + 1] = value[0]
        else:
            kept += [name, *value]
    return kept


def _small_config(file: Path) -> None:
    """Write a config without the layout of a cluster, and with one optimizer step."""
    values = yaml.safe_load(file.read_text("utf-8"))
    if values.pop("slime", {}).get("user"):
        values["user"] = {"kind": "scripted"}
    if values["stage"] in ("sft", "grpo"):
        each = {"save_every": 1, "export_every": 1} | ({"val_every": 1} if "val" in values else {})
        size = {"batch_size": 2} if values["stage"] == "sft" else {"tasks_per_step": 2}
        values["train"] = {**values.get("train", {}), "steps": 1, "warmup_steps": 0, **each, **size}
    if "val" in values:
        values["val"] = {"domains": ["mock"], "split": "synth-select", "limit": 1, "num_samples": 1}
    if "sampling" in values:
        values["sampling"]["max_tokens"] = 32
    file.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")


def _says(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    """The user's simulator, who asks once and leaves; an agent, who has tools, never uses them."""
    return "It is done." if tools else "Please do it." if len(messages) < 4 else "###STOP###"


def _make_clone(folder: Path, model: Path) -> None:
    """What a clone has, its configs in small, and a model of random weights."""
    for name in ("configs", "examples", "scripts"):
        shutil.copytree(ROOT / name, folder / name)
    for file in (folder / "configs").glob("*/*.yaml"):
        _small_config(file)
    server = folder / "server"
    server.write_text(SERVER.format(python=sys.executable, folder=folder), "utf-8")
    server.chmod(0o755)
    create_tiny([("a", {"messages": TALK})], SHAPE, model, seed=0)
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2**20}), "utf-8")


def _solve_one(runs: Path) -> None:
    """Give each run a validation with a success: a model of random weights has none, and there would be nothing to choose by."""
    for file in runs.glob("*/val/step_*.jsonl"):
        record = json.loads(file.read_text("utf-8").splitlines()[0])
        record["episode"]["grade"]["reward"] = 1.0
        file.write_text(json.dumps(record) + "\n", "utf-8")
