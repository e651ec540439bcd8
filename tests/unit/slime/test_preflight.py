"""What slime would pass over in silence or wait for without end, found before: one test a mistake, by its number.

- the configs as they are have no issue on a machine that has everything;
- each mistake of layout, batch, context, engines, GPUs, cores, services and disk is named with what to do;
- without a machine only the settings are looked at;
- what is left to slime is refused by slime when it reads its options (with a checkout of slime and of Megatron).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tau2rl.backend import Issue
from tau2rl.slime.argv import build_argv
from tau2rl.slime.model import shape_of
from tau2rl.slime.preflight import GIB, Machine, issues_of, read_machine
from tau2rl.slime.run_context import SlimeRun, absolute, write_files
from tests.slime_configs import CONFIGS, QWEN3_4B, QWEN3_5, SHAPE, load_slime
from tests.stubs.slime_stubs import WITHOUT_MEGATRON, checkout, megatron, parse

GOOD = Machine(
    gpus=16, cores=64, slime_commit="624b824a898ab0ec1fcb4d373004c7f3852bf515", free_bytes=4096 * GIB, user_answers=None
)
GRPO, SFT = "8xh100/grpo.yaml", "8xh100/sft.yaml"


def issues(name: str, *sets: str, **facts: Any) -> list[Issue]:
    return issues_of(load_slime(name, *sets), SHAPE, replace(GOOD, **facts))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_of_ours_has_no_issue_on_a_machine_that_has_everything(name: str) -> None:
    assert issues(name) == []


@pytest.mark.parametrize(
    ("name", "sets", "says"),
    [
        # 6 GPUs over 2 a copy are 3 copies; 16 x 8 = 128 episodes are no multiple of 3
        (
            "8xh100/grpo-colocate.yaml",
            ["train.tasks_per_step=16"],
            "a step of 128 cannot be cut into equal shares for the 3 copies",
        ),
        (GRPO, ["slime.gpus_per_engine=4"], "2 GPUs that serve the policy cannot be cut into engines of 4"),
        (GRPO, ["slime.user.gpus_per_engine=4"], "2 GPUs that serve the user simulator cannot be cut into engines of 4"),
        (GRPO, ["slime.user.tool_parser=qwen"], ""),
        (GRPO, ["slime.user.tool_parser=qwenn"], "SGLang has no tool parser `qwenn`"),
        (GRPO, ["limits.context_tokens=32768"], "limits.context_tokens lets 32768 tokens through, a forward pass holds 20480"),
        (GRPO, ["limits.context_tokens=32768", "slime.context_parallel=2", "slime.train_gpus=8"], ""),
        (SFT, ["data.max_tokens=20481"], "data.max_tokens lets 20481 tokens through"),
        (GRPO, ["train.warmup_steps=100"], "100 warm-up steps do not end within 100"),
        (GRPO, ["train.val_every=30"], "validation every 30 steps falls between saves every 20"),
        (GRPO, ["slime.overlap=true", "algo.correction=none"], "the policy that plays is one step old"),
        (SFT, ["train.batch_size=30"], "a step of 30 cannot be cut into equal shares for the 4 copies"),
    ],
)
def test_a_mistake_in_the_settings_is_found(name: str, sets: list[str], says: str) -> None:
    found = [issue.message for issue in issues(name, *sets, gpus=64, cores=128)]
    assert says in "\n".join(found) if says else found == []


@pytest.mark.parametrize(
    ("name", "facts", "kind", "says"),
    [
        (GRPO, {"gpus": 4}, "error", "8 GPUs are needed, 4 are there"),
        (GRPO, {"cores": 9}, "error", "10 cores are needed; Ray has 9"),  # one for each of 8 GPUs, two for slime
        (
            GRPO,
            {"slime_commit": "abcdef0123456789"},
            "warning",
            "slime is at abcdef012345, our options are those of 624b824a898a",
        ),
        (GRPO, {"slime_commit": None}, "warning", "slime's commit is not known"),
        ("8xh100/grpo-remote-user.yaml", {"user_answers": False}, "error", "the user simulator's server does not answer"),
    ],
)
def test_a_machine_that_lacks_something_is_told(name: str, facts: dict[str, Any], kind: str, says: str) -> None:
    found = issues(name, **facts)
    assert [issue.kind for issue in found if says in issue.message] == [kind]
    assert all(issue.hint for issue in found)


def test_hashing_by_key_would_send_the_user_simulator_to_one_engine() -> None:
    hashed = "slime.extra={router-policy: consistent_hashing}"
    (issue,) = issues(GRPO, hashed)
    assert issue.kind == "warning" and "to one engine" in issue.message
    assert issues("8xh100/grpo-remote-user.yaml", hashed) == []


def test_workers_need_cores_beside_those_of_slime() -> None:
    sets = "rollout.workers=4"
    assert issues(GRPO, sets, cores=14) == []
    (issue,) = issues(GRPO, sets, cores=13)
    assert issue.message == "14 cores are needed, 4 of them for rollout.workers; Ray has 13"
    assert "slime takes 10" in issue.hint


def test_errors_come_before_warnings() -> None:
    found = issues(GRPO, slime_commit=None, gpus=4, cores=4)
    assert [issue.kind for issue in found] == ["error", "error", "warning"]


def test_the_disk_has_to_hold_every_save() -> None:
    # 100 steps are 5 saves, each 14 + 2 bytes for each of 4.02e9 weights: 300 GiB; one state fewer at a time: 2 x 14 + 5 x 2
    assert "5 saves need 300 GiB, 299 are free" in issues(GRPO, free_bytes=299 * GIB)[0].message
    assert issues(GRPO, free_bytes=300 * GIB) == []
    assert issues(GRPO, "slime.saves=last", free_bytes=150 * GIB) == []


def test_without_a_machine_only_the_settings_are_looked_at() -> None:
    assert issues_of(load_slime(GRPO)) == []
    assert len(issues_of(load_slime(GRPO, "train.warmup_steps=100"))) == 1


def test_the_model_was_made_for_so_many_tokens() -> None:
    (issue,) = issues_of(load_slime(GRPO), replace(SHAPE, longest=8192))
    assert issue.message == "the model was made for 8192 tokens, not 20480"


def test_the_mask_of_another_template_is_refused() -> None:
    for mask, found in (("qwen3", ["slime.loss_mask `qwen3` does not read the template of `qwen3_5`"]), ("qwen3_5", [])):
        config = load_slime("8xh100/sft-qwen3.5-4b.yaml", f"slime.loss_mask={mask}")
        assert [issue.message for issue in issues_of(config, shape_of(QWEN3_5["4B"]))] == found
        assert issues_of(config, SHAPE) == []


def test_the_facts_of_this_machine_are_gathered_without_changing_it(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    machine = read_machine(load_slime(SFT, f"slime.root={tmp_path}"), folder)
    assert (machine.slime_commit, machine.user_answers) == (None, None)
    assert machine.free_bytes > 0 and machine.cores > 0 and not folder.exists()


def test_a_user_simulator_that_does_not_answer_is_noticed(tmp_path: Path) -> None:
    config = load_slime("8xh100/grpo-remote-user.yaml", "user.api_base=http://127.0.0.1:9/v1")
    assert read_machine(config, tmp_path).user_answers is False


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["slime.train_gpus=3"], "world size"),
        (["slime.pipeline_parallel=8", "slime.train_gpus=8", "slime.train_nodes=2"], "layers"),
        (["slime.extra={over-sampling-batch-size: 8}"], "should be greater than or equal to"),
        (["slime.extra={attention-backend: flsh}"], "flsh"),
        (["slime.extra={lr-wsd-decay-iters: many}"], "2"),  # argparse's exit code
    ],
)
def test_slime_refuses_what_is_left_to_it(sets: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout()
    if megatron() is None:
        pytest.skip(WITHOUT_MEGATRON)
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_4B))
    config = absolute(load_slime("8xh100/grpo-api-user.yaml", f"model.init={tmp_path}", *sets))
    run = SlimeRun(folder=tmp_path / "run", shape=SHAPE)
    write_files(config, run)
    with pytest.raises((AssertionError, KeyError, ValueError, SystemExit), match=says):
        parse(build_argv(config, run), monkeypatch)
