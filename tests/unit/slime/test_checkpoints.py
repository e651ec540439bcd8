"""Where a training goes on, and what it left; pinned here:

- a run begins where nothing is saved, goes on behind a whole save, and is refused where slime would silently begin again, its
  saves gone among them;
- what was played behind the save is played again, and is not kept twice;
- a save of another version, which does not say which task comes next, is refused in a sentence;
- a model to start from that Megatron saved is refused, with the command that converts it;
- an export counts when slime has ended writing it, and its number is the step, from 1; the backend finds it by that number.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tau2rl.config import SftConfig, build
from tau2rl.errors import UserError
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.tracking import rewind_episodes
from tau2rl.slime.backend import SlimeBackend
from tau2rl.slime.checkpoints import TRACKER, attempts_done, point_final, read_saves, refuse_megatron, slime_exports, steps_done
from tests.slime_configs import QWEN3_4B


def saved(folder: Path, *iterations: int, tracker: str | None, tasks: tuple[int, ...] = (), rows: tuple[int, ...] = ()) -> Path:
    """What Megatron leaves, and the choice of tasks, or slime's own source of rows."""
    for iteration in iterations:
        (folder / f"iter_{iteration:07}").mkdir(parents=True)
    for iteration in tasks:
        (folder / "rollout").mkdir(exist_ok=True)
        (folder / "rollout" / f"tasks_{iteration}.json").write_text("{}")
    for iteration in rows:
        (folder / "rollout").mkdir(exist_ok=True)
        (folder / "rollout" / f"global_dataset_state_dict_{iteration}.pt").write_text("")
    if tracker is not None:
        (folder / TRACKER).write_text(tracker)
    return folder


def test_a_run_begins_where_nothing_is_saved(tmp_path: Path) -> None:
    assert steps_done(read_saves(tmp_path / "absent"), draws_tasks=True) == 0
    assert steps_done(read_saves(tmp_path), draws_tasks=True) == 0


def test_a_run_goes_on_behind_its_last_whole_save(tmp_path: Path) -> None:
    save = saved(tmp_path, 9, 19, tracker="19\n", tasks=(9, 19))
    assert steps_done(read_saves(save), draws_tasks=True) == 20  # rollouts 0 to 19 are done


def test_supervised_training_goes_on_with_the_rows_behind_its_save(tmp_path: Path) -> None:
    save = saved(tmp_path, 9, 19, tracker="9", rows=(9,))
    assert steps_done(read_saves(save), draws_tasks=False) == 10
    (save / TRACKER).write_text("19")  # slime would begin with the first row again, and say nothing
    with pytest.raises(UserError, match=r"has no `rollout/global_dataset_state_dict_19\.pt`") as refused:
        steps_done(read_saves(save), draws_tasks=False)
    assert refused.value.hint == f"to go on from an earlier one: echo 9 > {save / TRACKER}"


@pytest.mark.parametrize(
    ("iterations", "tracker", "tasks", "says"),
    [
        ((9,), None, (), "no checkpoint in it is whole"),
        ((), "9", (), "has no `iter_0000009`"),
        ((9,), "release", (), "says `release`"),
        ((9,), "", (), "says ``"),
        ((9, 19), "19", (9,), "has no `rollout/tasks_19.json`"),
    ],
)
def test_a_save_that_slime_would_pass_over_is_refused(
    tmp_path: Path, iterations: tuple[int, ...], tracker: str | None, tasks: tuple[int, ...], says: str
) -> None:
    save = saved(tmp_path, *iterations, tracker=tracker, tasks=tasks)
    with pytest.raises(UserError, match=says):
        steps_done(read_saves(save), draws_tasks=True)


def test_an_interrupted_save_names_the_one_before_it(tmp_path: Path) -> None:
    save = saved(tmp_path, 9, 19, 29, tracker="29", tasks=(9, 19))
    with pytest.raises(UserError) as refused:
        steps_done(read_saves(save), draws_tasks=True)
    assert refused.value.hint == f"to go on from an earlier one: echo 19 > {save / TRACKER}"
    (save / TRACKER).write_text("19\n")
    assert steps_done(read_saves(save), draws_tasks=True) == 20


def test_episodes_of_discarded_rollouts_go_as_their_numbers_do(tmp_path: Path) -> None:
    save = saved(tmp_path / "megatron", 19, tracker="19", tasks=(19,))
    place = {"sample_group_index": 3, "sample_index": 24, "tasks": {}}  # three groups of eight, one of them dropped
    (save / "rollout" / "tasks_19.json").write_text(json.dumps(place))
    assert (attempts_done(save, 20), attempts_done(save, 0)) == (24, 0)
    kept, again = tmp_path / "episodes.jsonl", tmp_path / "none.jsonl"
    lines = [json.dumps({"attempt": {"index": index}, "said": "\u2028"}) for index in (23, 25, 0, 24)]  # as they ended
    kept.write_text("".join(f"{line}\n" for line in lines))
    rewind_episodes(kept, before=attempts_done(save, 20))
    rewind_episodes(again, before=24)
    assert kept.read_text().splitlines() == [lines[0], lines[2]] and not again.exists()
    rewind_episodes(kept, before=0)
    assert kept.read_text() == ""


def test_a_run_whose_saves_are_gone_is_not_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = tmp_path / "start"
    start.mkdir()
    (start / "config.json").write_text(json.dumps(QWEN3_4B))
    config = build(SftConfig, {"backend": "slime", "model": {"init": str(start)}, "data": {"val_fraction": 0.0}})
    path = RunFolder.create(tmp_path / "run", config, resume=False)
    (path / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(1, config.train.save_every + 2)))
    with RunFolder.open(path) as folder, pytest.raises(UserError, match=f"was at step {config.train.save_every + 1}"):
        SlimeBackend().train(config, folder, lambda _: None)
    assert len((path / "metrics.jsonl").read_text().splitlines()) == config.train.save_every + 1


def test_the_save_of_another_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    save = saved(tmp_path / "megatron", 19, tracker="19", tasks=(19,))
    old = {"sample_offset": 0, "epoch_id": 1, "sample_group_index": 3, "sample_index": 24, "drawn": 3, "curriculum": {}}
    (save / "rollout" / "tasks_19.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"tasks_19\.json` does not say `tasks`: another version of tau2rl wrote it") as refused:
        attempts_done(save, 20)
    assert "checkpoints/hf" in refused.value.hint
    with pytest.raises(UserError, match=r"tasks_18\.json` is missing"):
        attempts_done(save, 19)


def test_megatrons_checkpoint_is_no_model_to_start_from(tmp_path: Path) -> None:
    for start in (saved(tmp_path / "save", 9, tracker="9"), tmp_path / "save" / "iter_0000009"):
        with pytest.raises(UserError, match="Megatron") as refused:
            refuse_megatron(start)
        assert "tau2rl convert --to hf" in refused.value.hint
    refuse_megatron(tmp_path)


def export(folder: Path, number: int, *, whole: bool = True) -> Path:
    made = folder / "hf" / str(number)
    made.mkdir(parents=True)
    for name in ("config.json", "model.safetensors.index.json")[: 2 if whole else 1]:
        (made / name).write_text("{}")
    return made


def test_an_export_counts_when_it_is_whole(tmp_path: Path) -> None:
    tmp_path = tmp_path / "checkpoints"
    export(tmp_path, 9)
    last = export(tmp_path, 19)
    export(tmp_path, 29, whole=False)
    found = slime_exports(tmp_path)
    assert list(found) == [10, 20]
    assert (SlimeBackend().checkpoint(tmp_path.parent, 20), SlimeBackend().checkpoint(tmp_path.parent, 30)) == (last, None)
    final = point_final(tmp_path, found[20])
    assert final == tmp_path / "final"
    assert final.resolve() == last
