"""`--rehearse` of a config for a cluster, on a machine without a GPU:

    python -m scripts.rehearse_layout configs/8xh100/grpo.yaml [OPTIONS OF tau2rl grpo]

Ours is real: the layout and how small it can be made, every check before a start, slime's command line and files, the Ray job,
its log and curves, the save, the resume, the report, the checkpoint. What stands in: for eight GPUs a Ray head that counts
them, for the model one of random weights, for slime's `train.py` a program that takes its options, plays nothing, and writes
the numbers and checkpoints that slime would write. So nothing is said about GPUs, memory, episodes or weights, and validation is
left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from transformers.utils.logging import disable_progress_bar

from tau2rl.config import ShapeConfig
from tau2rl.settings import child_environment
from tau2rl.train.tiny import create_tiny
from tests.stubs.slime_program import make_machine, make_slime

TALK = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi!"}]
SHAPE = ShapeConfig(hidden=64, layers=2, heads=8, head_dim=8, intermediate=64, vocab_size=300)
RESOURCES = {"GPU": 8, "CPU": 32}  # of a Ray head that is told so


def main() -> int:
    """Make what stands in, and run the command; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a file of configs/8xh100 or configs/4gpu")
    asked, options = parser.parse_known_args()
    values = (yaml.safe_load(asked.config.read_text("utf-8")) if asked.config.is_file() else None) or {}
    if values.get("backend") != "slime":
        parser.error(f"`{asked.config}` is no config of a training on a cluster")
    with tempfile.TemporaryDirectory(prefix="tau2rl-") as name:
        place = Path(name)
        values["model"] = {"init": str(make_model(place / "model"))}
        values["slime"] |= {"root": str(make_slime(place / "slime", "good")), "megatron": str(place / "machine")}
        if values["stage"] == "sft":
            values["data"] = {**values["data"], "files": [str(place / "rows.jsonl")]}
            (place / "rows.jsonl").write_text(f"{json.dumps({'messages': TALK})}\n" * 64, "utf-8")
        else:
            values.pop("val", None)
            values.get("train", {}).pop("val_every", None)
        config = place / "config.yaml"
        config.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
        stand_ins = {**make_machine(place / "machine"), "RAY_OVERRIDE_RESOURCES": json.dumps(RESOURCES)}
        words = [sys.executable, "-m", "tau2rl", values["stage"], "-c", str(config), "--rehearse", *options]
        return subprocess.run(words, env=child_environment(stand_ins), check=False).returncode


def make_model(folder: Path) -> Path:
    """A checkpoint of random weights and a tokenizer, with room for any episode."""
    disable_progress_bar()
    create_tiny([("row", {"messages": TALK})], SHAPE, folder, seed=0)
    file = folder / "config.json"
    values = {**json.loads(file.read_text("utf-8")), "max_position_embeddings": 1 << 18}
    file.write_text(json.dumps(values), "utf-8")
    return folder


if __name__ == "__main__":
    sys.exit(main())
