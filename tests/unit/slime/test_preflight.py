"""What would fail after minutes on GPUs, found before: one test a mistake, by the number that makes it one.

- the configs as they are have no problem on a machine that has everything;
- each mistake of layout, batch, context, paths, software, cores, disk and memory is named with what to do;
- without a machine only the config is judged.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tau2rl.slime.job import SlimeRun
from tau2rl.slime.layout import layout_of
from tau2rl.slime.machine import GIB, Gpu, Machine, Problem, collect, training_bytes
from tau2rl.slime.model import SHAPE_4B
from tau2rl.slime.preflight import preflight
from tests.slime_configs import CONFIGS, load_slime

H100 = Gpu(total=80 * GIB, used=0)
GOOD = Machine(
    shape=SHAPE_4B,
    gpus=(H100,) * 8,
    cluster_gpus=16,
    cores=64,
    missing=frozenset(),
    slime_commit="624b824a898ab0ec1fcb4d373004c7f3852bf515",
    numpy="1.26.4",
    sglang=True,
    tokenizer=True,
    free_bytes=4096 * GIB,
    rows=152,
    eval_rows=26,
    wandb_key=True,
    user_reachable=None,
    engine_port_taken=False,
)
GRPO, SFT = "8xh100/grpo.yaml", "8xh100/sft.yaml"


def problems(name: str, *sets: str, **facts: Any) -> list[Problem]:
    return preflight(load_slime(name, *sets), replace(GOOD, **facts))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_of_ours_has_no_problem_on_a_machine_that_has_everything(name: str) -> None:
    assert problems(name) == []


@pytest.mark.parametrize(
    ("name", "sets", "says"),
    [
        # 6 GPUs over 2 a copy are 3 copies; 16 x 8 = 128 episodes are no multiple of 3
        (
            "8xh100/grpo-colocate.yaml",
            ["train.tasks_per_step=16"],
            "a step of 128 cannot be cut into equal shares for the 3 copies",
        ),
        (GRPO, ["slime.train_gpus=3"], "3 GPUs that train are not a multiple of the 2 that hold one copy"),
        (GRPO, ["slime.gpus_per_engine=4"], "2 GPUs that serve the policy cannot be cut into engines of 4"),
        (GRPO, ["slime.user.gpus_per_engine=4"], "2 GPUs that serve the customer cannot be cut into engines of 4"),
        (GRPO, ["slime.user.tool_parser=qwen"], ""),
        (GRPO, ["slime.user.tool_parser=qwenn"], "SGLang has no tool parser `qwenn`"),
        (GRPO, ["limits.context_tokens=32768"], "limits.context_tokens lets 32768 tokens through, a forward pass holds 20480"),
        (GRPO, ["limits.context_tokens=32768", "slime.context_parallel=2", "slime.train_gpus=8"], ""),
        (SFT, ["data.max_tokens=20481"], "data.max_tokens lets 20481 tokens through"),
        (GRPO, ["sampling.max_tokens=20480"], "one turn may be as long as the whole conversation"),
        (GRPO, ["train.warmup_steps=100"], "100 warm-up steps do not end within 100"),
        (GRPO, ["train.val_every=30"], "looks every 30 steps fall between saves every 20"),
        (GRPO, ["slime.overlap=true", "algo.correction=none"], "the policy that plays is one step old"),
        (GRPO, ["slime.tensor_parallel=16", "slime.train_nodes=4"], "heads of keys and values cannot be shared by 16 GPUs"),
        (
            GRPO,
            ["slime.pipeline_parallel=8", "slime.train_gpus=8", "slime.train_nodes=2"],
            "36 layers cannot be shared by 8 GPUs",
        ),
        (SFT, ["train.batch_size=30"], "a step of 30 cannot be cut into equal shares for the 4 copies"),
    ],
)
def test_a_mistake_in_the_settings_is_found(name: str, sets: list[str], says: str) -> None:
    found = [problem.message for problem in preflight(load_slime(name, *sets), replace(GOOD, cluster_gpus=64, cores=128))]
    assert says in "\n".join(found) if says else found == []


@pytest.mark.parametrize(
    ("name", "facts", "kind", "says"),
    [
        (GRPO, {"cluster_gpus": 4}, "error", "8 GPUs are needed, 4 are there"),
        (GRPO, {"cluster_gpus": None, "gpus": (H100,) * 6}, "error", "8 GPUs are needed, 6 are there"),
        (GRPO, {"cores": 9}, "error", "10 cores are needed; Ray has 9"),  # one for each of 8 GPUs, two for slime
        (GRPO, {"gpus": (replace(H100, used=30 * GIB),) + (H100,) * 7}, "warning", "somebody uses GPU 0 already"),
        (
            GRPO,
            {"gpus": (Gpu(total=24 * GIB, used=0),) * 8},
            "error",
            "training needs 36 GiB of a GPU at least, the smallest has 24",
        ),
        (GRPO, {"numpy": "2.1.0"}, "error", "Megatron needs numpy 1, here is 2.1.0"),
        (GRPO, {"numpy": None}, "error", "here is none"),
        (GRPO, {"sglang": False}, "error", "sglang cannot be imported"),
        (
            GRPO,
            {"slime_commit": "abcdef0123456789"},
            "warning",
            "slime is at abcdef012345, our options are those of 624b824a898a",
        ),
        (GRPO, {"slime_commit": None}, "warning", "cannot tell which slime"),
        (GRPO, {"tokenizer": False}, "error", "has no tokenizer"),
        (GRPO, {"rows": 15}, "error", "15 to train on are fewer than the 16 of a step"),
        (GRPO, {"eval_rows": 0}, "error", "no task to look at"),
        (GRPO, {"engine_port_taken": True}, "warning", "port 15000 is taken"),
        ("8xh100/grpo-remote-user.yaml", {"user_reachable": False}, "error", "the customer's server does not answer"),
        (SFT, {"missing": frozenset({Path("/rows.jsonl")})}, "error", "`/rows.jsonl` is not there"),
    ],
)
def test_a_machine_that_lacks_something_is_told(name: str, facts: dict[str, Any], kind: str, says: str) -> None:
    found = problems(name, **facts)
    assert [problem.kind for problem in found if says in problem.message] == [kind]
    assert all(problem.hint for problem in found)


def test_workers_need_cores_beside_those_of_slime() -> None:
    sets = "rollout.workers=4"
    assert problems(GRPO, sets, cores=14) == []
    (problem,) = problems(GRPO, sets, cores=13)
    assert problem.message == "14 cores are needed, 4 of them for rollout.workers; Ray has 13"
    assert "slime takes 10" in problem.hint


def test_a_missing_checkpoint_is_named_once() -> None:
    start = Path("/models/Qwen3-4B-Instruct-2507")
    found = problems(SFT, missing=frozenset({start, start / "config.json"}), tokenizer=False, shape=None)
    assert [problem.message for problem in found] == [f"`{start}` is not there"]


def test_errors_come_before_warnings() -> None:
    found = problems(GRPO, slime_commit=None, numpy="2.0", engine_port_taken=True, sglang=False)
    assert [problem.kind for problem in found] == ["error", "error", "warning", "warning"]


def test_the_disk_has_to_hold_every_save() -> None:
    # 100 steps are 5 saves, each 14 + 2 bytes for each of 4.02e9 weights: 300 GiB; one state fewer at a time: 2 x 14 + 5 x 2
    assert "5 saves need 300 GiB, 299 are free" in problems(GRPO, free_bytes=299 * GIB)[0].message
    assert problems(GRPO, free_bytes=300 * GIB) == []
    assert problems(GRPO, "slime.saves=last", free_bytes=150 * GIB) == []


def test_online_tracking_needs_a_key() -> None:
    assert "WANDB_API_KEY" in problems(GRPO, "tracking.wandb=online", wandb_key=False)[0].message
    assert problems(GRPO, "tracking.wandb=offline", wandb_key=False) == []


def test_without_a_machine_only_the_config_is_judged() -> None:
    assert preflight(load_slime(GRPO)) == []
    assert len(preflight(load_slime(GRPO, "sampling.max_tokens=20480", "limits.context_tokens=20480"))) == 1


def test_memory_of_training_is_weights_and_what_a_pass_keeps() -> None:
    config = load_slime(GRPO)
    # 4.022e9 weights over 2 GPUs at 6 + 12 / 2 bytes, the inputs of 36 layers, logits of half the vocabulary
    expected = 4_022_272_000 / 2 * 12 + 20480 * 2560 * 2 * 36 / 2 + 20480 * 151936 / 2 * 8
    assert training_bytes(config, SHAPE_4B, layout_of(config)) == int(expected)


def test_the_facts_of_this_machine_are_gathered_without_changing_it(tmp_path: Path) -> None:
    config = load_slime("8xh100/sft.yaml", f"slime.root={tmp_path}", f"model.init={tmp_path}", "data.files=[]")
    run = SlimeRun(folder=tmp_path / "not" / "there", shape=None)
    machine = collect(config, run)
    assert machine.missing == {tmp_path / "train.py", tmp_path / "config.json", Path("/root/Megatron-LM/megatron")}
    assert (machine.rows, machine.tokenizer, machine.user_reachable) == (None, False, None)
    assert machine.free_bytes > 0
    assert not run.folder.exists()
    run.own.mkdir(parents=True)
    run.prompts.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert collect(config, run).rows == 2


def test_the_customers_model_has_to_fit_its_engines(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 8192, "num_attention_heads": 3}')
    sets = [f"slime.user.checkpoint={tmp_path}", "slime.user.gpus_per_engine=2"]
    facts = collect(load_slime(GRPO, *sets), SlimeRun(folder=tmp_path, shape=None)).user_model
    assert [problem.message for problem in problems(GRPO, *sets, user_model=facts)] == [
        "the customer's model was made for 8192 tokens, not 32768",
        "the customer's 3 attention heads cannot be shared by 2 GPUs",
    ]
    assert problems(GRPO, *sets, user_model={"max_position_embeddings": 32768, "num_attention_heads": 4}) == []
    (tmp_path / "config.json").write_text("no JSON")
    assert collect(load_slime(GRPO, *sets), SlimeRun(folder=tmp_path, shape=None)).user_model == {}


def test_a_customer_that_does_not_answer_is_noticed(tmp_path: Path) -> None:
    config = load_slime("8xh100/grpo-remote-user.yaml", "user.api_base=http://127.0.0.1:9/v1")
    assert collect(config, SlimeRun(folder=tmp_path, shape=None)).user_reachable is False
