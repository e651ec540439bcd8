"""What `tau2rl sft` does around the training loop; pinned here:

- every row is accounted for: used, held out, or left out with its reason and its length, never cut;
- attempts at one task are held out together, and the choice does not depend on the other rows;
- early stopping hands on the best weights, and the report says of which step they are;
- LoRA trains with any scale above 0, also one below 1;
- the checkpoint is one that transformers reads, with tokenizer and chat template, and its report names the parents' hashes;
- no rows is a request that cannot be carried out, unless the run was told to hand the model on;
- each published layout goes in;
- the report says what the training took, and a start that goes on with it adds its own;
- a run whose training state is gone is not begun again in silence; where none was saved yet, it says so and begins again.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tau2rl.chat import make_codec
from tau2rl.config import ChatConfig, SftConfig, build
from tau2rl.data.encoding import Encoded
from tau2rl.errors import UserError
from tau2rl.launch.entry import run_stage
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.provenance import checkpoint_hash, file_hash
from tau2rl.train.backend import LocalBackend
from tau2rl.train.sft import split_rows
from tau2rl.types import TrainingSample

SHAPE = {"hidden": 16, "layers": 1, "heads": 1, "head_dim": 16, "intermediate": 32}
HELLO = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi!"}]


def carry_out(folder: Path, rows: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    """Train two steps on these rows; the report."""
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    data = {"files": [str(file)], "val_fraction": 0.0, **values.pop("data", {})}
    given = {"output": str(folder / "run"), "data": data, "train": {"steps": 2, "batch_size": 2}}
    given |= {} if "model" in values else {"local": {"shape": SHAPE}}
    config = build(SftConfig, {**given, **values})
    with RunFolder.open(RunFolder.create(folder / "run", config, resume=True)) as opened:
        run_stage(opened, lambda _: None)
    return read_json(folder / "run" / "report.json")


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    long = [*HELLO, {"role": "user", "content": "0123456789" * 40}, {"role": "assistant", "content": "Yes."}]
    rows = [{"messages": HELLO, "id": "a"}, {"messages": long, "id": "b"}, {"messages": HELLO[:2], "id": "c"}]
    report = carry_out(tmp_path, rows, data={"max_tokens": 100})
    assert report["rows"]["used"] == 1
    assert report["rows"]["reasons"] == {"too long": 1, "no assistant turn to learn": 1}
    longest = report["rows"]["dropped_rows"][0]
    assert (longest["id"], longest["reason"]) == ("b", "too long")
    assert longest["tokens"] > 100


def test_rows_none_of_which_can_be_read_are_named(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": 5}]}] * 5
    with pytest.raises(
        UserError, match=r"no row to make a tokenizer from: rows\.jsonl:1: `tool_calls` that are no list; .*; \.\.\."
    ):
        carry_out(tmp_path, rows)


def test_the_checkpoint_is_one_that_transformers_reads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = carry_out(tmp_path, [{"messages": HELLO}])
    folder = tmp_path / "run" / "checkpoints" / "final"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.chat_template
    assert make_codec(ChatConfig(tokenizer=str(folder))).stop_token_ids == (tokenizer.eos_token_id,)
    assert report["outputs"]["checkpoint"] == {"path": str(folder), "sha256": checkpoint_hash(folder)}
    assert report["inputs"]["parent"]["sha256"] == checkpoint_hash(folder.with_name("initial")) != checkpoint_hash(folder)
    assert report["inputs"]["data"][0]["sha256"] == file_hash(tmp_path / "rows.jsonl")


def test_the_cost_of_a_training_is_the_sum_of_its_sessions(tmp_path: Path) -> None:
    first = carry_out(tmp_path, [{"messages": HELLO}], train={"steps": 2, "batch_size": 1})
    cost, tokens = first["cost"], first["rows"]["tokens"]
    assert cost["tokens"]["trained"] == 2 * tokens == first["training"]["tokens"]  # one row a step
    assert set(cost["wall"]["seconds"]) == {"loading", "update", "saving", "rest"}
    assert cost["tokens"]["trained_per_second"] > 0 and cost["process"]["cpu_seconds"] > 0
    assert "% of the wall time is " in cost["bottleneck"] and "episodes" not in cost
    again = carry_out(tmp_path, [{"messages": HELLO}], train={"steps": 2, "batch_size": 1})  # nothing is left to do
    assert again["cost"]["tokens"]["trained"] == again["training"]["tokens"] == 2 * tokens
    assert again["cost"]["process"]["wall_seconds"] > cost["process"]["wall_seconds"]
    longer = carry_out(tmp_path, [{"messages": HELLO}], train={"steps": 3, "batch_size": 1})
    assert longer["cost"]["tokens"]["trained"] == longer["training"]["tokens"] == 3 * tokens
    assert longer["training"]["tokens_per_second"] > 0 and longer["training"]["shared_share"] == 0


def test_a_checkpoint_is_trained_further(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    first = carry_out(tmp_path, [{"messages": HELLO}])["outputs"]["checkpoint"]
    second = carry_out(tmp_path / "second", [{"messages": HELLO}], model={"init": first["path"]})
    assert second["inputs"]["parent"] == first
    assert second["outputs"]["checkpoint"]["sha256"] != first["sha256"]


def test_low_rank_additions_are_merged_into_the_checkpoint(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    report = carry_out(tmp_path, [{"messages": HELLO}], local={"shape": SHAPE, "lora": {"rank": 2}})
    assert 0 < report["training"]["trained_parameters"] < report["training"]["parameters"]
    assert not hasattr(AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoints" / "final"), "peft_config")


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_low_rank_additions_learn_with_any_scale(alpha: float, tmp_path: Path) -> None:
    local = {"shape": SHAPE, "lora": {"rank": 2, "alpha": alpha}}
    report = carry_out(tmp_path, [{"messages": HELLO}], local=local, train={"steps": 3, "batch_size": 1, "lr": 0.1})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert min(line["gradient_norm"] for line in lines) > 0
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert report["outputs"]["checkpoint"]["sha256"] != report["inputs"]["parent"]["sha256"]


def said(number: int, answer: str) -> dict[str, Any]:
    return {"messages": [*HELLO[:2], {"role": "assistant", "content": answer}], "id": f"{number}#0"}


def test_early_stopping_hands_on_the_best_weights(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [said(i, "".join(rng.choices("abcdefghij", k=12))) for i in range(12)]  # nothing that could be learned for others
    train = {"steps": 200, "batch_size": 4, "lr": 0.03, "warmup_steps": 0, "val_every": 2, "early_stopping_patience": 3}
    report = carry_out(tmp_path, rows, data={"val_fraction": 0.4}, train=train)
    training, lines = report["training"], (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    seen = {line["step"]: line["val_loss"] for line in map(json.loads, lines) if line["val_loss"] is not None}
    best = min(seen, key=seen.__getitem__)
    assert training["stopped_early"] and training["steps"] == max(seen) == best + 6
    assert training["final_step"] == best
    assert training["val_loss_after"] == pytest.approx(seen[best]) == pytest.approx(training["best_val_loss"])
    assert seen[max(seen)] > training["val_loss_after"] + 0.01
    found = [LocalBackend().checkpoint(tmp_path / "run", step) for step in (best, training["steps"])]
    assert found == [tmp_path / "run" / "checkpoints" / "final", None]
    handed_on = report["outputs"]["checkpoint"]["sha256"]
    again = carry_out(tmp_path, rows, data={"val_fraction": 0.4}, train=train)  # a finished run hands on the same
    assert (again["outputs"]["checkpoint"]["sha256"], again["training"]["final_step"]) == (handed_on, best)


def test_nothing_to_train_on_is_refused_unless_the_model_may_be_handed_on(tmp_path: Path) -> None:
    parent = carry_out(tmp_path, [{"messages": HELLO}])["outputs"]["checkpoint"]
    for name in ("refused", "handed-on"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="no assistant token to train on"):
        carry_out(tmp_path / "refused", [], model={"init": parent["path"]})
    report = carry_out(tmp_path / "handed-on", [], model={"init": parent["path"]}, data={"allow_empty": True})
    assert report["training"] == {"steps": 0, "reason": "no row is left"}
    given, made = report["inputs"]["parent"]["path"], report["outputs"]["checkpoint"]["path"]
    assert file_hash(Path(given) / "model.safetensors") == file_hash(Path(made) / "model.safetensors")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": HELLO, "metadata": {"task_id": "3"}},
        {"messages": HELLO[:2], "answer": HELLO[2]},
        {"messages": [*HELLO[:2], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
    ],
    ids=["tau2-sft-seed-v3", "AReaL", "OpenAI"],
)
def test_each_layout_goes_in(row: dict[str, Any], tmp_path: Path) -> None:
    assert carry_out(tmp_path, [row])["rows"]["used"] == 1


def test_attempts_at_one_task_are_held_out_together() -> None:
    sample = TrainingSample(token_ids=(1, 2), loss_mask=(0, 1), logprobs=None, turn_spans=())
    names = [f"mock/{task}#{attempt}" for task in range(200) for attempt in range(2)]
    split = split_rows(Encoded(rows=((sample,),) * 400, ids=tuple(names), dropped=()), val_fraction=0.25)
    assert len(split.train) + len(split.val) == 400
    assert len(split.val) % 2 == 0
    assert 60 <= len(split.val) <= 140
    alone = [len(split_rows(Encoded(rows=((sample,),), ids=(name,), dropped=()), val_fraction=0.25).val) for name in names]
    assert sum(alone) == len(split.val)
    assert not split_rows(Encoded(rows=((sample,),), ids=(names[0],), dropped=()), val_fraction=0.0).val


def test_a_run_whose_state_is_gone_is_not_begun_again(tmp_path: Path) -> None:
    carry_out(tmp_path, [{"messages": HELLO}])
    run = tmp_path / "run"
    before = (run / "metrics.jsonl").read_bytes()
    shutil.rmtree(run / "checkpoints" / "state")
    with pytest.raises(UserError, match="no training state, and the run was at step 2") as caught:
        carry_out(tmp_path, [{"messages": HELLO}], train={"steps": 4, "batch_size": 2})
    assert "metrics.jsonl" in caught.value.hint and (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("was", "now", "begins"), [(50, 50, True), (2, 2, False), (50, 2, True)])
def test_a_run_without_a_state_begins_again_where_none_was_saved_yet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, was: int, now: int, begins: bool
) -> None:
    steps = {"steps": 4, "batch_size": 2}
    carry_out(tmp_path, [{"messages": HELLO}], train={**steps, "save_every": was})
    checkpoints = tmp_path / "run" / "checkpoints"
    for gone in ("state", "final"):  # as a kill behind the third step leaves it
        shutil.rmtree(checkpoints / gone)
    curves = tmp_path / "run" / "metrics.jsonl"
    curves.write_text("".join(curves.read_text().splitlines(keepends=True)[:3]))
    if not begins:
        with pytest.raises(UserError, match="was at step 3"):
            carry_out(tmp_path, [{"messages": HELLO}], train={**steps, "save_every": now})
        return
    report = carry_out(tmp_path, [{"messages": HELLO}], train={**steps, "save_every": now})
    assert "ended at step 3 (train.save_every): it begins again at step 0" in caplog.text
    assert report["training"]["steps"] == 4 and len(curves.read_text().splitlines()) == 4
