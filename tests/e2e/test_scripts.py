"""The scripts, run as people run them; pinned here:

- each is bash that reads, stops at the first error, shows no command with its values (`set -x`), and ends nothing by a name;
- (programs of a virtual environment that write down how they were called) `quickstart.sh` does both of its parts, or the one that
  is named; options without a word before them go to `tau2rl eval`; values with blanks arrive whole;
- `--help` of every script is said at once, and nothing is installed for it;
- what is installed is installed once: a script whose extras are there, by whichever script, installs nothing;
- (slow, for real) sft -> rft -> sft -> grpo -> eval, each by its script; a cluster's layout is rehearsed against stand-ins,
  and all checks hold.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
PYTHON = """#!/usr/bin/env bash
case "$*" in *sys.version_info*) ;; *) printf '%s\\n' "$*" >>"$0.log" ;; esac
"""
TAU2RL = """#!/usr/bin/env bash
printf '<%s>' "$@" >>"$0.log"; printf '\\n' >>"$0.log"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose virtual environment has programs that only write down their arguments."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in (("python", PYTHON), ("tau2rl", TAU2RL), ("pip", f"{programs}/python")):
        (programs / name).write_text(text, "utf-8")
        (programs / name).chmod(0o755)
    return tmp_path


def call(clone: Path, script: str, *arguments: str, code: int = 0) -> str:
    """What the script says on stderr."""
    done = subprocess.run([clone / "scripts" / script, *arguments], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == code, done.stderr
    return done.stderr


def calls(clone: Path, program: str) -> list[str]:
    """How a program was called since the last look."""
    log = clone / ".venv" / "bin" / f"{program}.log"
    lines = log.read_text("utf-8").splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def extras(clone: Path) -> list[str]:
    """The extras of every installation since the last look."""
    return [line.rpartition("--editable ")[2] for line in calls(clone, "python") if "-m uv pip install" in line]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_script_is_careful(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text("utf-8")
    assert [word for word in ("set -x", "pkill", "killall", "ray stop", "eval ", "| sh", "sudo") if f"\n{word}" in text] == []
    if not script.name.startswith("_"):
        assert "\nset -euo pipefail\n" in text
        assert os.access(script, os.X_OK)


def test_the_quickstart_does_both_parts(clone: Path) -> None:
    said = call(clone, "quickstart.sh")
    evaluation, pipeline = calls(clone, "tau2rl")
    assert evaluation.startswith("<eval><-c><configs/eval/gold.yaml><--name><quickstart-")
    assert pipeline.startswith("<run><-c><configs/laptop/pipeline.yaml><--name><quickstart-")
    assert extras(clone) == [".[laptop]", ".[laptop,local]"]  # the first result does not wait for torch
    assert "1 of 2: " in said
    assert "2 of 2: " in said


@pytest.mark.parametrize(
    ("arguments", "begins", "ends"),
    [
        (("gold", "--limit", "1"), "<eval>", "<--limit><1>"),
        (("--domains", "retail", "--limit", "5"), "<eval>", "<--domains><retail><--limit><5>"),
        (("train", "--limit", "1", "--output", "a b"), "<run>", "<--limit><1><--output><a b>"),
    ],
)
def test_the_quickstart_does_the_part_that_is_named(clone: Path, arguments: tuple[str, ...], begins: str, ends: str) -> None:
    call(clone, "quickstart.sh", *arguments)
    (line,) = calls(clone, "tau2rl")
    assert line.startswith(begins)
    assert line.endswith(ends)


def test_the_quickstart_explains_itself_and_refuses_other_words(clone: Path) -> None:
    assert "hint: `gold`, `train`" in call(clone, "quickstart.sh", "gould", code=2)
    done = subprocess.run([clone / "scripts" / "quickstart.sh", "--help"], capture_output=True, text=True, check=True)
    assert "./scripts/quickstart.sh train [OPTIONS]" in done.stdout
    assert (calls(clone, "tau2rl"), calls(clone, "python")) == ([], [])


@pytest.mark.parametrize(("script", "command"), [("sft", "sft"), ("rft", "rft-filter"), ("grpo", "grpo"), ("eval", "eval")])
def test_a_stages_script_hands_its_arguments_on(clone: Path, script: str, command: str) -> None:
    call(clone, f"{script}.sh", "--name", "a b", "--set", "x=[1, 2]", "")
    assert calls(clone, "tau2rl") == [f"<{command}><--name><a b><--set><x=[1, 2]><>"]
    assert extras(clone) == [".[laptop,local]"]


def test_what_is_there_is_not_installed_again(clone: Path) -> None:
    for script in ("quickstart.sh", "quickstart.sh", "sft.sh", "eval.sh"):
        call(clone, script, "--limit", "1")
    assert extras(clone) == [".[laptop]", ".[laptop,local]"]
    call(clone, "quickstart.sh", "gold")
    assert extras(clone) == []
    with (clone / "scripts" / "constraints.txt").open("a") as file:
        file.write("# another version of something\n")
    call(clone, "quickstart.sh", "gold")
    assert extras(clone) == [".[laptop]"]


def test_an_installation_that_fails_is_tried_again(clone: Path) -> None:
    python = clone / ".venv" / "bin" / "python"
    python.write_text(PYTHON + 'case "$*" in *install*) exit 1 ;; esac\n', "utf-8")
    assert "cannot install" in call(clone, "eval.sh", code=2)
    python.write_text(PYTHON, "utf-8")
    call(clone, "eval.sh")
    assert extras(clone) == [".[laptop,local]"]


@pytest.mark.slow
def test_the_scripts_make_a_chain(tmp_path: Path) -> None:
    """In this checkout and its `.venv`; the scripts install what it lacks."""

    def run(script: str, *arguments: str) -> None:
        words = [str(ROOT / "scripts" / script), *arguments, "--inline"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    def laptop(name: str) -> str:
        return f"configs/laptop/{name}.yaml"

    def final(name: str) -> str:
        return str(tmp_path / name / "checkpoints" / "final")

    few = ("--limit", "2", "--num-samples", "2")
    seed = [str(ROOT / ".venv" / "bin" / "tau2rl"), "seed", "-c", laptop("seed"), "--limit", "40", "--inline"]
    subprocess.run([*seed, "--output", str(tmp_path / "seed")], check=True, cwd=ROOT, capture_output=True)
    run("sft.sh", "-c", laptop("sft"), "--data", f"{tmp_path}/seed/rows.jsonl", "--steps", "3", "--output", f"{tmp_path}/sft")
    run("rft.sh", "-c", laptop("rft"), "--set", f"policy.checkpoint={final('sft')}", *few, "--output", f"{tmp_path}/rft")
    again = ("--model", final("sft"), "--data", f"{tmp_path}/rft/sft.jsonl", "--set", "data.allow_empty=true")
    run("sft.sh", "-c", laptop("sft2"), *again, "--steps", "3", "--output", f"{tmp_path}/sft2")
    small = (
        "--steps",
        "2",
        "--set",
        "train.tasks_per_step=2",
        "--set",
        "train.val_every=2",
        "--set",
        "val.limit=1",
        "--set",
        "rollout.num_samples=2",
    )
    run("grpo.sh", "-c", laptop("grpo"), "--model", final("sft2"), *small, "--output", f"{tmp_path}/grpo")
    run("eval.sh", "-c", laptop("eval"), "--set", f"policy.checkpoint={final('grpo')}", *few, "--output", f"{tmp_path}/eval")
    report = json.loads((tmp_path / "eval" / "report.json").read_text("utf-8"))
    assert (report["tasks"], report["attempts"], report["incomplete"]) == (2, 2, False)


SAID = [script for script in [*SCRIPTS, *sorted((ROOT / "docker").glob("*.sh"))] if not script.name.startswith("_")]


@pytest.mark.parametrize("script", SAID, ids=lambda p: p.name)
def test_help_is_said_at_once_and_installs_nothing(script: Path, tmp_path: Path) -> None:
    shutil.copytree(script.parent, tmp_path / "a clone" / script.parent.name)
    command = [tmp_path / "a clone" / script.parent.name / script.name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] and done.stderr == ""
    assert not (tmp_path / "a clone" / ".venv").exists()


PROGRAMS = sorted(ROOT.glob("scripts/*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_a_program_of_the_scripts_explains_itself(program: Path) -> None:
    done = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


BENCHMARKS = [file for file in sorted(ROOT.glob("scripts/benchmarks/*.py")) if "__main__" in file.read_text("utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("program", BENCHMARKS, ids=lambda p: p.name)
def test_a_benchmark_explains_itself(program: Path) -> None:
    done = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 3, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("config", ["grpo", "grpo-published", "sft"])
def test_the_layout_of_a_cluster_is_rehearsed_without_one(config: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.rehearse_layout", f"configs/8xh100/{config}.yaml"]
    environment = {**os.environ, "TAU2RL_OUTPUTS": str(tmp_path / "outputs")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
