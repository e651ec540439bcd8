"""A program in place of slime's `train.py`, and a machine that looks as slime's container does to whoever checks it.

    root = make_slime(folder, "good")        a checkout with a `train.py` that "trains": a driver of Ray, one actor, checkpoints
    make_checkpoint(folder)                  a Hugging Face directory without weights, of a shape that can be cut over GPUs
    make_machine(folder)                     variables of an environment with eight GPUs, numpy 1 and an importable sglang

Modes: `good`; `fail-behind-rollout-1` (its actor breaks when rollout 1 has been logged, before it is saved); `hang` (it waits for
its end). The program writes what it saw to `seen.json` in the checkout, and its process id to `pid`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

SEEN, COUNTED = "seen.json", "pid"

PROGRAM = """
import json, os, sys, time
from pathlib import Path
import ray, yaml

MODE = {mode!r}
root = Path(__file__).parent
argv = sys.argv[1:]
value = lambda name: argv[argv.index(name) + 1]

@ray.remote(num_cpus=0, runtime_env={{"env_vars": {{"RAY_USE_UVLOOP": "0"}}}})
class Actor:
    def environment(self):
        from tau2rl import settings
        names = ("CUDA_DEVICE_MAX_CONNECTIONS", "PYTHONPATH", "no_proxy", "TAU2RL_SECRETS_FILE", "OPENAI_API_KEY")
        print("the actor plays", flush=True)
        return {{**{{name: os.environ.get(name) for name in names}}, "key_read": len(settings.secret("OPENAI_API_KEY") or "")}}

    def step(self, index):
        numbers = {{"train/loss": 0.5 ** (index + 1), "train/step": index}}
        print(f"[now] model.py:918 - step {{index}}: {{numbers}}", flush=True)

    def fail(self):
        raise RuntimeError("the rollout broke")

def save(index):
    folder = Path(value("--save"))
    (folder / f"iter_{{index:07}}").mkdir(parents=True)
    export = Path(value("--save-hf").format(rollout_id=index))
    export.mkdir(parents=True)
    (export / "model.safetensors").write_bytes(bytes([index]))
    for name in ("config.json", "model.safetensors.index.json"):
        (export / name).write_text("{{}}")
    (folder / "rollout").mkdir(exist_ok=True)
    place = {{"sample_group_index": 0, "sample_index": 8 * (index + 1), "tasks": {{}}}}
    for name in (f"tasks_{{index}}.json", f"global_dataset_state_dict_{{index}}.pt"):
        (folder / "rollout" / name).write_text(json.dumps(place))
    (folder / "latest_checkpointed_iteration.txt").write_text(str(index))

(root / "pid.draft").write_text(str(os.getpid()))
(root / "pid.draft").rename(root / "pid")
if MODE == "hang":
    time.sleep(600)
print("the driver has " + os.environ.get("OPENAI_API_KEY", "no key"), flush=True)
actor = Actor.remote()
tracker = Path(value("--load")) / "latest_checkpointed_iteration.txt"
began = int(tracker.read_text()) + 1 if tracker.exists() else 0
session = ray._private.worker._global_node.get_session_dir_path()
(root / "runtime_env.json").write_text(json.dumps(dict(ray.get_runtime_context().runtime_env)))
(root / "seen.json").write_text(json.dumps({{
    "argv": argv,
    "actor": ray.get(actor.environment.remote()),
    "custom_config": yaml.safe_load(Path(value("--custom-config-path")).read_text()),
    "prompts": len(Path(value("--prompt-data")).read_text().splitlines()),
    "began": began,
    "session": session,
    "runtime_env": str(root / "runtime_env.json"),
}}))
for index in range(began, int(value("--num-rollout"))):
    ray.get(actor.step.remote(index))
    if MODE == "fail-behind-rollout-1" and index == 1:
        time.sleep(2)  # the words of actors take a moment to arrive
        ray.get(actor.fail.remote())
    save(index)
time.sleep(2)
"""

SHAPE = {
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}


def make_slime(root: Path, mode: str) -> Path:
    """A checkout whose programs behave as `mode` says; an older one is replaced."""
    root.mkdir(exist_ok=True)
    for name in ("train.py", "train_async.py"):
        (root / name).write_text(PROGRAM.format(mode=mode))
    return root


def make_checkpoint(folder: Path) -> Path:
    """A Hugging Face directory that is complete but for its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def make_machine(folder: Path) -> dict[str, str]:
    """Variables under which this machine has eight idle GPUs, numpy 1 and sglang. `folder` also serves as Megatron's checkout."""
    programs, modules = folder / "bin", folder / "modules"
    for needed in (programs, modules / "sglang", modules / "numpy-1.26.4.dist-info", folder / "megatron"):
        needed.mkdir(parents=True)
    smi = programs / "nvidia-smi"
    smi.write_text("#!/bin/sh\nfor gpu in 0 1 2 3 4 5 6 7; do echo '81559, 10'; done\n")
    smi.chmod(0o755)
    (modules / "sglang" / "__init__.py").write_text("")
    (modules / "numpy-1.26.4.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.26.4\n")
    return {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(modules)}
