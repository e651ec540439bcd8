"""`tau2rl convert`, pinned here:

- to Hugging Face: slime's tool is asked for the last whole iteration, with names, tokenizer and vocabulary of the first model;
- to Megatron: slime's tool is told the shape of the model;
- a run folder knows where its save is and what its training started from;
- what cannot work is refused before anything starts, and nothing is overwritten;
- the tool's failure is exit code 1, and its words are on stderr;
- the options exist in slime's own tools (with a checkout of slime).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import GrpoConfig, build, dump
from tests.stubs.slime_program import make_checkpoint
from tests.stubs.slime_stubs import checkout

TOOL = """
import sys
from pathlib import Path
print("the tool was called with", sys.argv[1:])
if "--fail" in Path(__file__).with_name("mode").read_text():
    sys.exit("no space left")
name = "--output-dir" if "--output-dir" in sys.argv else "--save"
Path(sys.argv[sys.argv.index(name) + 1]).mkdir()
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkout of slime whose tools only say that they were called, a model, and what Megatron saved."""
    tools = tmp_path / "slime" / "tools"
    tools.mkdir(parents=True)
    (tools / "mode").write_text("")
    for name in ("convert_torch_dist_to_hf.py", "convert_hf_to_torch_dist.py"):
        (tools / name).write_text(TOOL)
    make_checkpoint(tmp_path / "start")
    save = tmp_path / "run" / "checkpoints" / "megatron"
    for iteration in (9, 19):
        (save / f"iter_{iteration:07}").mkdir(parents=True)
        (save / f"iter_{iteration:07}" / "common.pt").write_bytes(b"")
    (save / "latest_checkpointed_iteration.txt").write_text("19")
    asked = build(GrpoConfig, {"backend": "slime", "model": {"init": str(tmp_path / "start")}, "chat": {"tokenizer": "bytes"}})
    (tmp_path / "run" / "config.json").write_text(json.dumps(dump(asked)))
    return tmp_path


def call(place: Path, *words: str) -> Any:
    roots = ("--slime-root", str(place / "slime"), "--megatron-root", "/megatron")
    return CliRunner().invoke(app, ["convert", *words, *roots])


def argv(place: Path, *words: str) -> list[str]:
    done = call(place, *words, "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["environment"]["PYTHONPATH"].startswith(f"/megatron:{place / 'slime'}")
    assert plan["environment"]["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    return plan["argv"][1:]


def test_a_run_folder_is_converted_at_its_last_iteration(place: Path) -> None:
    assert argv(place, "--to", "hf", str(place / "run"), str(place / "out")) == [
        str(place / "slime" / "tools" / "convert_torch_dist_to_hf.py"),
        *("--input-dir", str(place / "run" / "checkpoints" / "megatron" / "iter_0000019")),
        *("--output-dir", str(place / "out"), "--origin-hf-dir", str(place / "start"), "--vocab-size", "512"),
    ]


def test_any_iteration_can_be_named(place: Path) -> None:
    iteration = place / "run" / "checkpoints" / "megatron" / "iter_0000009"
    words = argv(place, "--to", "hf", str(iteration), str(place / "out"), "--origin", str(place / "start"))
    assert words[2] == str(iteration)


def test_megatron_is_told_the_shape_of_the_model(place: Path) -> None:
    words = argv(place, "--to", "megatron", str(place / "start"), str(place / "out"))
    assert words[0] == str(place / "slime" / "tools" / "convert_hf_to_torch_dist.py")
    assert words[words.index("--num-layers") + 1] == "2"
    assert words[-4:] == ["--hf-checkpoint", str(place / "start"), "--save", str(place / "out")]


def test_a_dry_run_shows_a_line_of_shell(place: Path) -> None:
    done = call(place, "--to", "hf", str(place / "run"), str(place / "out"), "--dry-run")
    assert done.stdout.startswith("PYTHONPATH=/megatron:")
    assert not (place / "out").exists()


def test_the_tool_runs_and_its_words_are_no_data(place: Path) -> None:
    done = call(place, "--to", "hf", str(place / "run"), str(place / "out"))
    assert (done.exit_code, done.stdout) == (0, f"{place / 'out'}\n")
    assert "the tool was called with" in done.stderr


def test_a_tool_that_fails_is_said_to_have_failed(place: Path) -> None:
    (place / "slime" / "tools" / "mode").write_text("--fail")
    done = call(place, "--to", "hf", str(place / "run"), str(place / "out"))
    assert done.exit_code == 1
    assert "no space left" in done.stderr
    assert "exit code 1" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--to", "gguf", "run", "out"), "no such layout `gguf`"),
        (("--to", "hf", "start", "out"), "which model the training started from"),
        (("--to", "hf", "start", "out", "--origin", "start"), "no checkpoint of Megatron's"),
        (("--to", "hf", "run", "start"), "is not empty"),
        (("--to", "megatron", "run/checkpoints/megatron", "out"), "is a checkpoint of Megatron's already"),
        (("--to", "megatron", "nowhere", "out"), "no `config.json`"),
    ],
)
def test_what_cannot_work_is_refused(place: Path, words: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    done = call(place, *words)
    assert done.exit_code == 2
    assert says in done.stderr


def test_without_slime_there_is_no_tool(place: Path) -> None:
    done = CliRunner().invoke(app, ["convert", "--to", "hf", str(place / "run"), str(place / "out"), "--slime-root", "/nowhere"])
    assert done.exit_code == 2
    assert "--slime-root" in done.stderr


def test_slimes_tools_know_the_options() -> None:
    tools = checkout() / "tools"
    to_hf = (tools / "convert_torch_dist_to_hf.py").read_text()
    for option in ("--input-dir", "--output-dir", "--origin-hf-dir", "--vocab-size"):
        assert f'"{option}"' in to_hf
    assert '"--hf-checkpoint"' in (tools / "convert_hf_to_torch_dist.py").read_text()
