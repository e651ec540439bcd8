"""Which tasks slime is given, through slime's real data source; pinned here:

- slime is given the tasks that the local backend's sampler chooses from the same outcomes, with the curriculum and without;
- what FAILED and what was aborted is no evidence; the parts of one episode are one;
- a resumed source goes on where the checkpoint was saved, even when a later rollout had begun; without its state it is refused;
- a rollout function that never calls `observe` can save all the same; what has ended the run ends slime's next draw;
- groups, numbers and copies are slime's own;
- tau2 is imported when the source is made, before anything plays, and not under episodes in flight;
- in slime's own rollout, started by our command line, every group that was played reaches the source, dropped ones too.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tau2rl.config import GrpoConfig
from tau2rl.data.task_profile import write_profile
from tau2rl.data.task_sampling import TaskSampler, outcome
from tau2rl.env.tasks import write_prompts
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.slime.samples import KEY, SampleMetadata
from tau2rl.train.tiny import save_tokenizer, train_tokenizer
from tau2rl.types import Episode, Failure, Fault, Grade, Status, StopReason, TaskRef
from tests.contract.slime_episodes import DONE, RIGHT, WRONG, agent, codec_of, handed, settings
from tests.contract.slime_job import RouterStub, SlimeJob, write_checkpoint
from tests.stubs.slime_stubs import checkout, install

TASKS = [TaskRef(domain="mock", task_id=f"t{i}", split="base") for i in range(6)]
PLAYED = Episode(
    task=TASKS[0],
    seed=1,
    status=Status.COMPLETED,
    stop_reason=StopReason.USER_STOP,
    token_ids=(),
    turns=(),
    messages=(),
    grade=None,
)
SIZE = 4  # attempts in a group


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes sources over `TASKS`, each as slime would in a process of its own."""
    install(monkeypatch)
    monkeypatch.delitem(sys.modules, "tau2rl.slime.data_source", raising=False)  # it holds an earlier test's slime
    ours = importlib.import_module("tau2rl.slime.data_source")
    save_tokenizer(train_tokenizer(["mock/t0 mock/t1"], vocab_size=300), tmp_path / "tokenizer")
    prompts = write_prompts(TASKS, tmp_path / "prompts.jsonl")

    def make(config: GrpoConfig) -> Any:
        args: dict[str, Any] = {
            "prompt_data": str(prompts), "input_key": "input", "metadata_key": "metadata", "rollout_global_dataset": True,
            "hf_checkpoint": str(tmp_path / "tokenizer"), "n_samples_per_prompt": SIZE, "rollout_max_prompt_len": None,
            "rollout_shuffle": False, "rollout_seed": config.seed, "label_key": None, "tool_key": None, "multimodal_keys": None,
            "apply_chat_template": False, "apply_chat_template_kwargs": None, "dump_details": None, "buffer_filter_path": None,
            "save": str(tmp_path / "save"), "load": str(tmp_path / "save"),
        }  # fmt: skip
        return ours.TaskDataSource(handed(config, tmp_path, **args))

    def end(made: Any, groups: Sequence[Any]) -> None:
        ours.observe(made.args, groups, made.get_samples)

    return lambda config: SimpleNamespace(slime=make(config), end=end)


def configured(*, enabled: bool = True) -> GrpoConfig:
    return settings(algo={"curriculum": {"enabled": enabled}}, train={"tasks_per_step": 2}, seed=11)


def episode(task: TaskRef, number: int, attempt: int) -> Episode:
    """An attempt of round `number`: later tasks are solved less, and some attempts are no evidence."""
    of = TASKS.index(task)
    if (number + attempt + of) % 5 == 0:
        gone = Failure(fault=Fault.USER, kind="UserSimulatorFailure", message="gone")
        return replace(PLAYED, task=task, status=Status.FAILED, failure=gone)
    reward = float((number + attempt) % 6 >= of)
    return replace(PLAYED, task=task, grade=Grade(reward=reward, checks=None, reward_basis=()))


def ref_of(group: Sequence[Any]) -> TaskRef:
    return TaskRef(**group[0].metadata["task"])


def played(groups: Sequence[Sequence[Any]], number: int) -> Sequence[Sequence[Any]]:
    """slime's groups with what the hooks leave on their samples."""
    for group in groups:
        for attempt, sample in enumerate(group):
            ended_as(sample, outcome(episode(ref_of(group), number, attempt)))
    return groups


def ended_as(sample: Any, solved: bool | None) -> None:
    ref = TaskRef(**sample.metadata["task"])
    found = SampleMetadata(task=ref.key, domain=ref.domain, split=ref.split, status="completed", solved=solved)
    sample.metadata[KEY] = found.to_json()


def test_what_takes_seconds_to_import_is_there_before_anything_plays(
    source: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "tau2rl.slime.rollout"  # tau2 comes with it
    monkeypatch.delitem(sys.modules, slow, raising=False)
    source(configured())
    assert {slow, "tau2"} <= sys.modules.keys()


@pytest.mark.parametrize("steered", ["curriculum", "profile", "nothing"])
def test_both_backends_choose_the_same_tasks(source: Callable[..., Any], steered: str, tmp_path: Path) -> None:
    config = configured(enabled=steered != "nothing")
    if steered == "profile":
        known = {ref.key: {"solved": i, "valid": 4, "bucket": "never" if i == 0 else "medium"} for i, ref in enumerate(TASKS[:3])}
        write_profile(tmp_path / "profile.json", {"tasks": known, "tasks_sha256": None})
        config = settings(algo={"curriculum": {"profile": str(tmp_path / "profile.json")}}, train={"tasks_per_step": 2}, seed=11)
    world = source(config)
    local = TaskSampler([ref.key for ref in TASKS], config.algo.curriculum, group_size=SIZE, seed=config.seed)
    assert bool(world.slime._sampler.known.evidence) == (steered == "profile")
    by_key = {ref.key: ref for ref in TASKS}
    chosen: list[list[str]] = []
    for number in range(12):
        draws = 2 if number % 4 == 3 else 1  # every fourth rollout needs more groups
        slime_groups = [group for _ in range(draws) for group in world.slime.get_samples(2)]
        local_refs = [by_key[key] for _ in range(draws) for key in local.sample(2)]
        assert [ref_of(group) for group in slime_groups] == local_refs
        chosen.append([ref.key for ref in local_refs])
        world.end(world.slime, played(slime_groups, number))
        outcomes: dict[str, list[bool | None]] = {}
        for ref in local_refs:
            outcomes.setdefault(ref.key, []).extend(outcome(episode(ref, number, i)) for i in range(SIZE))
        local.observe(outcomes)
    assert len({tuple(keys) for keys in chosen}) > 3  # it did choose, and not always alike


def test_what_is_no_evidence_says_nothing_of_a_task(source: Callable[..., Any]) -> None:
    world = source(configured())
    groups = world.slime.get_samples(2)
    (one, other), keys = groups, [ref_of(group).key for group in groups]
    for sample, solved in zip(one, (True, False, None, None), strict=True):
        ended_as(sample, solved)
    fanned = [[sample, sample] for sample in other[:2]] + other[2:]  # the last two were aborted before they had metadata
    for sample in other[:2]:
        ended_as(sample, True)
    world.end(world.slime, [one, fanned])
    world.slime.save(0)
    again = source(configured()).slime
    again.load(0)
    assert again._sampler.known.evidence == {keys[0]: (1.0, 2.0), keys[1]: (2.0, 2.0)}


@pytest.mark.parametrize("enabled", [True, False])
def test_a_resumed_source_goes_on_behind_its_checkpoint(source: Callable[..., Any], enabled: bool) -> None:
    world = source(configured(enabled=enabled))
    for number in range(3):
        world.end(world.slime, played(world.slime.get_samples(2), number))
    expected = world.slime.get_samples(2)
    world.end(world.slime, played(expected, 3))  # rollout 3 is played before rollout 2 is saved, as train_async.py does
    world.slime.save(2)
    again = source(configured(enabled=enabled))
    again.slime.load(2)
    groups = again.slime.get_samples(2)
    assert [[(s.index, s.group_index, ref_of(g)) for s in g] for g in groups] == [
        [(s.index, s.group_index, ref_of(g)) for s in g] for g in expected
    ]
    again.end(again.slime, played(groups, 3))
    assert [ref_of(g) for g in again.slime.get_samples(2)] == [ref_of(g) for g in world.slime.get_samples(2)]


def test_a_beginning_needs_no_state_and_a_resumption_does(source: Callable[..., Any]) -> None:
    slime = source(configured()).slime
    slime.load(-1)
    with pytest.raises(UserError, match=r"tasks_4\.json` is missing") as refused:
        slime.load(4)
    assert "latest_checkpointed_iteration.txt" in refused.value.hint
    slime.save(4)
    file = Path(slime.args.save) / "rollout" / "tasks_4.json"
    file.write_text(json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != "tasks"}))
    with pytest.raises(UserError, match="another version of tau2rl wrote it"):
        slime.load(4)


def test_a_rollout_function_that_skips_the_hook_can_save_and_go_on(source: Callable[..., Any]) -> None:
    world = source(configured())
    world.slime.get_samples(2)
    world.slime.save(0)
    expected = world.slime.get_samples(2)
    again = source(configured()).slime
    again.load(0)
    assert [ref_of(g) for g in again.get_samples(2)] == [ref_of(g) for g in expected]
    again.save(1)
    again.load(1)


def test_what_has_ended_the_run_ends_the_next_draw(source: Callable[..., Any]) -> None:
    slime = source(configured()).slime
    slime.get_samples(2)
    slime._rollout_of(slime.args)._fatal = RunIncomplete("nothing has worked for 1800 s")
    with pytest.raises(RunIncomplete, match="nothing has worked"):
        slime.get_samples(2)


def test_groups_are_slimes_own(source: Callable[..., Any]) -> None:
    slime = source(configured()).slime
    assert len(slime) == len(TASKS)
    groups = [*slime.get_samples(2), *slime.get_samples(9)]
    assert [group[0].group_index for group in groups] == list(range(11))
    assert [sample.index for group in groups for sample in group] == list(range(11 * SIZE))
    assert len(slime) == len(TASKS)
    twice = [group for group in groups if ref_of(group) == ref_of(groups[-1])]
    assert len(twice) > 1
    twice[0][0].metadata["task"]["task_id"] = "changed"
    assert ref_of(twice[1]).task_id != "changed"


def test_without_the_curriculum_every_task_comes_once_an_epoch(source: Callable[..., Any]) -> None:
    slime = source(configured(enabled=False)).slime
    epochs = [[ref_of(g).key for _ in range(3) for g in slime.get_samples(2)] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [ref.key for ref in TASKS]
    assert epochs[0] != epochs[1]


def test_slimes_own_rollout_tells_the_source_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout()
    model = write_checkpoint(tmp_path / "model")
    with RouterStub(answer=agent(codec_of(model), scripts=((RIGHT, DONE),))) as server:
        tasks = {"domains": ["mock"], "split": "base", "ids": ["create_task_1"]}
        algo = {"curriculum": {"enabled": True}, "max_resample_rounds": 2}
        job = SlimeJob(tmp_path / "run", monkeypatch, server, checkpoint=model, tasks=tasks, algo=algo)
        try:
            job.played()  # every attempt succeeds, so groups are dropped up to the cap
            source = job.manager.data_source
            won, tried = source._sampler.known.evidence["mock/create_task_1"]
            assert won == tried and tried >= 8  # two groups of four and more, of which one is trained on
            server.answer = agent(codec_of(model), scripts=((WRONG, DONE),))
            job.played(1)
            job.manager.save(0)
            job.manager.save(1)
            known = source._sampler.known.evidence
            assert known["mock/create_task_1"][1] > known["mock/create_task_1"][0]
            job.args.load = job.args.save  # what slime finds there when the run is resumed
            job.manager.load(0)
            assert source._sampler.known.evidence == {"mock/create_task_1": (won, tried)}
        finally:
            job.close()
