"""`sft` on slime from rows to report, in this process, with a program in place of slime's `train.py`; pinned here:

- the rows that fit are written for slime, the others are in the report; slime gets its own command line and our variables;
- the last export becomes `checkpoints/final`, and the report is of the same shape as that of the local backend;
- a finished run that is started again starts nothing; one with more steps goes on behind its last save to a longer end;
- a slime that ends well without the last export is an incomplete run, and a wrong request starts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tau2rl.config import SftConfig, build
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.launch.entry import run_stage
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import ProgressEvent
from tau2rl.runs.reports import Result
from tau2rl.train.tiny import create_tiny
from tests.stubs.slime_program import make_machine

PROGRAM = """
import json, os, sys
from pathlib import Path
root, argv = Path(__file__).parent, sys.argv[1:]
value = lambda name: argv[argv.index(name) + 1]
starts = root / "starts.json"
seen = json.loads(starts.read_text()) if starts.exists() else []
seen.append({"argv": argv, "path": os.environ["PYTHONPATH"], "alloc": os.environ["PYTORCH_CUDA_ALLOC_CONF"]})
starts.write_text(json.dumps(seen))
save = Path(value("--save"))
tracker = save / "latest_checkpointed_iteration.txt"
for index in range(int(tracker.read_text()) + 1 if tracker.exists() else 0, int(value("--num-rollout"))):
    print(f"x - step {index}: {{'train/loss': {2.0 - index}, 'train/step': {index}}}", flush=True)
last = int(value("--num-rollout")) - 1
(save / f"iter_{last:07}").mkdir(parents=True)
(save / "rollout").mkdir(exist_ok=True)
(save / "rollout" / f"global_dataset_state_dict_{last}.pt").touch()
tracker.write_text(str(last))
if not (root / "no-export").exists():
    export = Path(value("--save-hf").format(rollout_id=last))
    export.mkdir(parents=True)
    for name in ("config.json", "model.safetensors.index.json", "model.safetensors"):
        (export / name).write_text("{}")
"""
TURNS = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
LONG = [{**TURNS[0], "content": "Help. " * 400}, *TURNS[1:]]

Start = Callable[..., Result]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Carry out the run of `tmp_path / "run"` as a job would, on a machine that looks as slime's container does."""
    variables = make_machine(tmp_path / "machine")
    monkeypatch.setenv("PATH", variables["PATH"])
    monkeypatch.setattr("tau2rl.settings.available_cores", lambda: 16)
    monkeypatch.syspath_prepend(variables["PYTHONPATH"])
    (tmp_path / "slime").mkdir()
    for name in ("train.py", "train_async.py"):
        (tmp_path / "slime" / name).write_text(PROGRAM)
    rows = [{"messages": TURNS, "metadata": {"id": f"a#{i}"}} for i in range(4)] + [{"messages": LONG, "metadata": {"id": "b#0"}}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model: Any = {"init": str(tmp_path / "start")}
    settings = {
        "backend": "slime",
        "output": str(tmp_path / "run"),
        "model": model,
        "data": {"files": [str(tmp_path / "rows.jsonl")], "max_tokens": 512, "val_fraction": 0},
        "train": {"steps": 2, "warmup_steps": 0, "batch_size": 4, "save_every": 2},
        "slime": {
            "root": str(tmp_path / "slime"),
            "megatron": str(tmp_path / "machine"),
            "tensor_parallel": 1,
            "max_tokens_per_gpu": 512,
        },
    }
    shape = build(SftConfig, {}).local.shape
    create_tiny([(row["metadata"]["id"], row) for row in rows], shape, tmp_path / "start", seed=0)

    def run(*, resume: bool = False, **changes: Any) -> Result:
        config = build(SftConfig, {**settings, **changes})
        with RunFolder.open(RunFolder.create(tmp_path / "run", config, resume=resume)) as folder:
            return run_stage(folder, list[ProgressEvent]().append)

    return run


def starts(tmp_path: Path) -> list[dict[str, Any]]:
    file = tmp_path / "slime" / "starts.json"
    return json.loads(file.read_text()) if file.exists() else []


def test_rows_become_a_checkpoint_and_a_report(start: Start, tmp_path: Path) -> None:
    report = start().report
    (seen,) = starts(tmp_path)
    argv = seen["argv"]
    assert argv[argv.index("--prompt-data") + 1] == str(tmp_path / "run" / "slime" / "prompts.jsonl")
    assert argv[argv.index("--global-batch-size") + 1] == "4"
    assert seen["path"].startswith(f"{tmp_path / 'slime'}:{tmp_path / 'machine'}:")
    assert seen["alloc"] == "expandable_segments:True"
    written = [json.loads(line) for line in (tmp_path / "run" / "slime" / "prompts.jsonl").read_text().splitlines()]
    assert [row["metadata"]["id"] for row in written] == ["a#0", "a#1", "a#2", "a#3"]
    assert report["rows"]["used"] == 4
    assert report["rows"]["reasons"] == {"too long": 1}
    assert report["training"] == {"steps": 2, "loss_first": 1.5, "loss_last": 1.5}  # the mean of 2 and 1
    assert report["outputs"]["checkpoint"]["path"] == str(tmp_path / "run" / "checkpoints" / "final")
    assert {"stage", "digest", "incomplete", "inputs", "outputs", "rows", "training"} <= report.keys()

    assert start(resume=True).report["outputs"] == report["outputs"]
    assert len(starts(tmp_path)) == 1


def test_a_training_is_extended_behind_its_last_save(start: Start, tmp_path: Path) -> None:
    train = {"warmup_steps": 0, "batch_size": 4, "save_every": 2}
    start()
    report = start(resume=True, train={**train, "steps": 4}).report
    first, second = starts(tmp_path)
    changed = {(a, b) for a, b in zip(first["argv"], second["argv"], strict=True) if a != b}
    assert changed == {("2", "4")}  # `--num-rollout`, beside which Megatron takes the saved schedule up again:
    assert "--override-opt_param-scheduler" in second["argv"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == [(1, 2.0), (2, 1.0), (3, 0.0), (4, -1.0)]
    assert report["training"]["steps"] == 4
    assert (tmp_path / "run" / "checkpoints" / "final").resolve() == tmp_path / "run" / "checkpoints" / "hf" / "3"
    with pytest.raises(UserError, match="a training can be extended, not shortened"):
        start(resume=True, train={**train, "steps": 2})


def test_a_run_without_its_last_export_is_incomplete(start: Start, tmp_path: Path) -> None:
    (tmp_path / "slime" / "no-export").touch()
    with pytest.raises(RunIncomplete, match="no whole Hugging Face checkpoint of step 2"):
        start()
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_wrong_request_starts_nothing(start: Start, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 rows can be trained on, fewer than") as refused:
        start(train={"steps": 2, "warmup_steps": 0, "batch_size": 8, "save_every": 2})
    assert refused.value.hint == "1 rows are left out: too long"
    with pytest.raises(UserError, match="cannot be cut into equal shares"):
        start(train={"steps": 2, "warmup_steps": 0, "batch_size": 3, "save_every": 2})
    assert starts(tmp_path) == []
