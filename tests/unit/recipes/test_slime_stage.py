"""What happens around slime, without it; pinned here:

- a run begins where nothing is saved, goes on behind a whole save, and is refused where slime would silently begin again;
- what was played behind the save is played again, and is not kept twice;
- a model to start from that Megatron saved is refused, with the command that converts it;
- an export counts when slime has ended writing it, and its number is the step, from 1;
- the variables of slime's job go on top of those that the job has; lists are joined, and only paths of keys are among them;
- the numbers of a step are read out of slime's log as it prints them, and keys in the log are not kept;
- the reason of a failure is the error that the log names last;
- a row for slime ends at its last trained turn, marks what is not learned, and is left out whole when it is too long;
- the report joins the lines of a step and does not count what no step trained on;
- its cost is what the rollout process says of itself, within the wall time of the jobs.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.errors import UserError
from tau2rl.report.cost import Costs, Session
from tau2rl.runs.progress import ProgressEvent
from tau2rl.runs.tracking import rewind_episodes
from tau2rl.slime.backend import cost_of, summary
from tau2rl.slime.checkpoints import TRACKER, attempts_done, exports, look, point_final, refuse_megatron, steps_done
from tau2rl.slime.job import JOB_CONFIG, child_environment, cluster_size, shared_variables, tracker_login
from tau2rl.slime.process import SlimeLog, read_numbers, run_child
from tau2rl.slime.sft_data import write_conversations

SYSTEM = {"role": "system", "content": "Help."}
GREETING = {"role": "assistant", "content": "Hi! How can I help?"}
ASKED = {"role": "user", "content": "Cancel #W1."}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "cancel", "arguments": '{"id": "W1"}'}}],
}
RESULT = {"role": "tool", "content": "done", "tool_call_id": "1"}
SAID = {"role": "assistant", "content": "It is cancelled."}
THANKS = {"role": "user", "content": "Thank you."}
TOOL = {"type": "function", "function": {"name": "cancel", "description": "", "parameters": {"type": "object", "properties": {}}}}


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
    assert steps_done(look(tmp_path / "absent"), draws_tasks=True) == 0
    assert steps_done(look(tmp_path), draws_tasks=True) == 0


def test_a_run_goes_on_behind_its_last_whole_save(tmp_path: Path) -> None:
    save = saved(tmp_path, 9, 19, tracker="19\n", tasks=(9, 19))
    assert steps_done(look(save), draws_tasks=True) == 20  # rounds 0 to 19 are done


def test_supervised_training_goes_on_with_the_rows_behind_its_save(tmp_path: Path) -> None:
    save = saved(tmp_path, 9, 19, tracker="9", rows=(9,))
    assert steps_done(look(save), draws_tasks=False) == 10
    (save / TRACKER).write_text("19")  # slime would begin with the first row again, and say nothing
    with pytest.raises(UserError, match=r"has no `rollout/global_dataset_state_dict_19\.pt`") as refused:
        steps_done(look(save), draws_tasks=False)
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
        steps_done(look(save), draws_tasks=True)


def test_an_interrupted_save_names_the_one_before_it(tmp_path: Path) -> None:
    save = saved(tmp_path, 9, 19, 29, tracker="29", tasks=(9, 19))
    with pytest.raises(UserError) as refused:
        steps_done(look(save), draws_tasks=True)
    assert refused.value.hint == f"to go on from an earlier one: echo 19 > {save / TRACKER}"
    (save / TRACKER).write_text("19\n")
    assert steps_done(look(save), draws_tasks=True) == 20


def test_episodes_of_discarded_rounds_go_as_their_numbers_do(tmp_path: Path) -> None:
    save = saved(tmp_path / "megatron", 19, tracker="19", tasks=(19,))
    (save / "rollout" / "tasks_19.json").write_text('{"sample_index": 24}')  # three groups of eight, one of them dropped
    assert (attempts_done(save, 20), attempts_done(save, 0)) == (24, 0)
    kept, again = tmp_path / "episodes.jsonl", tmp_path / "none.jsonl"
    lines = [json.dumps({"attempt": {"index": index}, "said": "\u2028"}) for index in (23, 25, 0, 24)]  # as they ended
    kept.write_text("".join(f"{line}\n" for line in lines))
    rewind_episodes(kept, before=attempts_done(save, 20))
    rewind_episodes(again, before=24)
    assert kept.read_text().splitlines() == [lines[0], lines[2]] and not again.exists()
    rewind_episodes(kept, before=0)
    assert kept.read_text() == ""


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
    export(tmp_path, 9)
    last = export(tmp_path, 19)
    export(tmp_path, 29, whole=False)
    found = exports(tmp_path)
    assert list(found) == [10, 20]
    final = point_final(tmp_path, found[20])
    assert final == tmp_path / "final"
    assert final.resolve() == last


def test_variables_go_on_top_of_those_of_the_job() -> None:
    job = {"runtime_env": {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"}, "config": {"x": 1}}, "metadata": {"job": "1"}}
    present = {
        "PYTHONPATH": "/theirs",
        "no_proxy": "10.0.0.1",
        "SLIME_HOST_IP": "10.0.0.5",
        "KEY": "sk",
        "TAU2RL_SECRETS_FILE": "/s",
        JOB_CONFIG: json.dumps(job),
    }
    made = child_environment(present, shared_variables(present, {"PYTHONPATH": "/megatron:/slime", "A": "1"}))
    assert made["PYTHONPATH"] == "/megatron:/slime:/theirs"
    assert made["KEY"] == "sk"
    runtime = json.loads(made[JOB_CONFIG])
    assert runtime["metadata"] == {"job": "1"}
    assert runtime["runtime_env"] == {
        "config": {"x": 1},
        "env_vars": {
            "RAY_JOB_STOP_WAIT_TIME_S": "30",
            "PYTHONPATH": "/megatron:/slime:/theirs",
            "A": "1",
            "no_proxy": "127.0.0.1,localhost,10.0.0.5,10.0.0.1",  # slime's router and engines listen on 10.0.0.5
            "NO_PROXY": "127.0.0.1,localhost,10.0.0.5",
            "TAU2RL_SECRETS_FILE": "/s",
        },
    }


def test_outside_a_job_nobody_is_asked_for_gpus() -> None:
    assert cluster_size({"HOME": "/h"}) == (None, None)


def test_the_trackers_key_is_in_a_file_of_its_owner_alone() -> None:
    with tracker_login("secret-key", base_url="https://wandb.example.org:8080") as login:
        file = Path(login["NETRC"])
        assert file.read_text() == "machine wandb.example.org\n  login user\n  password secret-key\n"
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert not file.parent.exists()
    with tracker_login(None) as login:
        assert login == {}


def test_numbers_are_read_as_slime_prints_them() -> None:
    prefix = "\x1b[36m(MegatronTrainRayActor pid=7)\x1b[0m [2026-08-21 17:14:19] model.py:918 - "
    found = read_numbers(prefix + "step 12: {'train/loss': -1.5e-05, 'train/grad_norm': 0.25, 'train/step': 12}")
    assert found is not None
    assert (found.kind, found.index) == ("step", 12)
    assert found.values == {"train/loss": -1.5e-05, "train/grad_norm": 0.25, "train/step": 12.0}
    assert read_numbers(prefix + "critic-step 12: {'train/critic-loss': 1.0}") is None
    assert read_numbers(prefix + "passrate 12: {'passrate/pass@1': 1.0}") is None


def test_a_log_keeps_lines_and_curves_but_no_key(tmp_path: Path) -> None:
    said, events = io.StringIO(), list[ProgressEvent]()
    log = SlimeLog(
        file=tmp_path / "slime.log",
        metrics=tmp_path / "metrics.jsonl",
        steps=4,
        updates=2,
        clean=lambda text: text.replace("sk-1", "[KEY]"),
        say=said,
        progress=events.append,
    )
    with log:
        for line in (
            "a line with sk-1",
            "x - rollout 0: {'rollout/raw_reward': 0.25}",
            "x - step 0: {'train/loss': 0.5, 'train/grad_norm': nan, 'train/step': 0}",
            "x - step 1: {'train/loss': 0.25, 'train/step': 1}",
            "(RolloutManager pid=3) x - perf 0: {'perf/rollout_time': 30.0}",
            "x - perf 0: {'perf/train_wait_time': 31.0, 'perf/train_time': 8.5, 'perf/actor_train_time': 6.0}",
            "x - step 2: {'train/loss': 0.125, 'train/step': 2}",
            "x - perf 1: {'perf/train_time': 1.5}",
            "(RolloutManager pid=3) tau2rl.errors.RunIncomplete: the customer was away for 1800 s",
            "ray.exceptions.RayTaskError(RunIncomplete): ray::RolloutManager.generate()",
        ):
            log(line)
    assert "sk-1" not in said.getvalue() + (tmp_path / "slime.log").read_text()
    assert said.getvalue().startswith("a line with [KEY]\n")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [  # two optimizer steps are one round
        {"step": 1, "train/loss": 0.5, "train/grad_norm": None},
        {"step": 1, "train/loss": 0.25},
        {"step": 2, "train/loss": 0.125},
    ]
    assert [(event.done, event.total, event.note) for event in events][-1] == (2, 4, "reward 0.250")
    assert log.train_seconds == 10.0
    assert log.reason() == "RunIncomplete: the customer was away for 1800 s"


def rows(tmp_path: Path, *given: dict[str, Any], max_tokens: int = 100_000) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    file = tmp_path / "prompts.jsonl"
    account = write_conversations(
        [(f"a.jsonl:{i}", row) for i, row in enumerate(given, 1)], ByteTokenizer(), file, max_tokens=max_tokens
    )
    return [json.loads(line) for line in file.read_text().splitlines()], account.told()


def test_a_row_for_slime_marks_what_is_not_learned(tmp_path: Path) -> None:
    history = [SYSTEM, GREETING, ASKED, CALLED, RESULT, SAID, THANKS]
    (row,), told = rows(tmp_path, {"messages": history, "tools": [TOOL], "metadata": {"id": "retail/1#0"}})
    assert [m["role"] for m in row["messages"]] == ["system", "assistant", "user", "assistant", "tool", "assistant"]
    assert [m.get("step_loss_mask", 1) for m in row["messages"]] == [1, 0, 1, 1, 1, 1]
    assert row["messages"][3]["tool_calls"][0]["function"] == {"name": "cancel", "arguments": {"id": "W1"}}
    assert row["messages"][4]["tool_call_id"] == row["messages"][3]["tool_calls"][0]["id"]
    assert row["tools"] == [TOOL]
    assert row["metadata"] == {"id": "retail/1#0"}
    assert (told["used"], told["held_out"], told["dropped"]) == (1, 0, 0)


def test_of_a_row_with_an_answer_only_the_answer_is_learned(tmp_path: Path) -> None:
    (row,), _ = rows(tmp_path, {"messages": [SYSTEM, ASKED, CALLED, RESULT], "answer": SAID})
    assert [m.get("step_loss_mask", 1) for m in row["messages"]] == [1, 1, 0, 1, 1]
    assert "tools" not in row


def test_a_row_that_is_too_long_is_left_out_whole(tmp_path: Path) -> None:
    long = {"messages": [SYSTEM, {"role": "user", "content": "x" * 5000}, SAID], "metadata": {"id": "long"}}
    short = {"messages": [SYSTEM, ASKED, SAID]}
    useless = {"messages": [SYSTEM, ASKED]}
    kept, told = rows(tmp_path, long, short, useless, max_tokens=1000)
    assert [len(row["messages"]) for row in kept] == [3]
    assert told["reasons"] == {"too long": 1, "no assistant turn to learn": 1}
    assert [row["id"] for row in told["dropped_rows"]] == ["long", "a.jsonl:3"]
    assert told["dropped_rows"][0]["tokens"] > 5000
    assert told["longest"] < 1000


def test_a_report_joins_the_lines_of_a_step(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 0, "val/pass@1": 0.25},
        {"step": 1, "reward/mean": 0.0, "groups/useful": 3, "episodes/failed": 1},
        {"step": 1, "train/loss": 0.5},
        {"step": 2, "reward/mean": 0.5, "groups/useful": 4, "episodes/failed": 0},
        {"step": 2, "train/loss": 0.25},
        {"step": 2, "val/pass@1": 0.75},
        {
            "step": 3,
            "reward/mean": 1.0,
            "groups/useful": 5,
            "episodes/failed": 0,
        },  # played, and the run broke before it was trained on
    ]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert summary(metrics) == {
        "steps": 2,
        "reward_first": 0.25,
        "reward_last": 0.25,
        "loss_first": 0.375,
        "loss_last": 0.375,
        "useful_groups": 7,
        "failed_episodes": 1,
        "validation": {0: 0.25, 2: 0.75},
    }
    assert summary(tmp_path / "absent.jsonl") == {"steps": 0}


def started(run: Path, number: int, **values: Any) -> None:
    logs = run / "logs" / f"session_{number}"
    logs.mkdir(parents=True)
    for name, start in values.items():
        (logs / f"{name}.json").write_text(json.dumps(start.to_json()))


def test_the_cost_of_reinforcement_is_that_of_its_rollouts_within_the_job(tmp_path: Path) -> None:
    costs = Costs(episodes=4, seconds=80.0, policy_seconds=60.0, policy_in=1000, policy_out=100, env_cpu_seconds=2.0)
    rollout = Session(seconds=30.0, cpu_seconds=6.0, cores=16, played=costs)
    started(tmp_path, 1, play=Session(seconds=60.0, cpu_seconds=1.0, cores=16, wall={"update": 20.0}), rollout=rollout)
    started(tmp_path, 2, play=Session(seconds=40.0, cpu_seconds=1.0, cores=16, wall={"update": 10.0}), rollout=rollout)
    cost = cost_of(tmp_path)
    assert cost["wall"]["seconds"] == {"rollout": 60.0, "update": 30.0, "rest": 10.0}
    assert cost["process"] == {"wall_seconds": 60.0, "cpu_seconds": 12.0, "busy": 0.2, "cores": 16, "reason": None}
    assert (cost["episodes"], cost["tokens"]["policy_in"], cost["env_cpu"]["seconds"]) == (8, 2000, 4.0)
    assert cost["bottleneck"] == (
        "60% of the wall time is rollouts, 75% of episode time waits for the policy, the process was busy 20% of the time"
    )


def test_of_supervised_training_on_a_cluster_the_wall_time_is_known(tmp_path: Path) -> None:
    started(tmp_path, 1, play=Session(seconds=50.0, cpu_seconds=1.0, cores=2, wall={"update": 40.0}))
    cost = cost_of(tmp_path)
    assert cost["process"]["wall_seconds"] == 50.0
    assert (cost["process"]["busy"], cost["process"]["reason"]) == (None, "the work was done in other processes")
    assert cost["bottleneck"] == "80% of the wall time is training"


def child(code: str, on_line: Any, tmp_path: Path) -> int:
    return run_child([sys.executable, "-c", code], environment={}, on_line=on_line, cwd=tmp_path)


def test_a_child_gives_its_lines_and_its_code(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import sys; print('one'); sys.stdout.flush(); print('two', file=sys.stderr); sys.exit(3)"
    assert child(code, lines.append, tmp_path) == 3
    assert lines == ["one", "two"]
    assert child("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", lines.append, tmp_path) == -9


def test_an_interruption_ends_the_child(tmp_path: Path) -> None:
    ours = threading.get_ident()

    def on_line(line: str) -> None:
        (tmp_path / "pid").write_text(line)
        signal.pthread_kill(ours, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        child("import os, time; print(os.getpid(), flush=True); time.sleep(600)", on_line, tmp_path)
    assert not (Path("/proc") / (tmp_path / "pid").read_text()).exists()


def test_a_full_disk_is_told_when_the_child_has_ended(tmp_path: Path) -> None:
    def full(_line: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        child("print('x' * 100_000); print('y'); open('ended', 'w')", full, tmp_path)
    assert (tmp_path / "ended").exists()
