"""The documentation names what exists.

- every relative link and every file named in the map and the documents is in the tree
- the map names every package and every top-level module of `tau2rl/`, and nothing that is not there
- every config file that a document names loads
- every `tau2rl` command in a document could be typed: its options and the settings of `--set` exist
- every file of a run that a document, a config or a help names is one that a run of its stage leaves; where the run has a name of
  its own, a config or a command makes it
- docs/eval.md has a line for every setting of an evaluation, and no other
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tau2rl.cli import app
from tau2rl.config import STAGES, EvalConfig, build, known_names, read_config_file
from tau2rl.recipes.pipeline_plan import ROWS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tau2rl" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "#"))]
    missing = [link for link in links if link and not (document.parent / link).exists()]
    named = re.findall(r"`((?:tau2rl|configs|scripts|docs|tests)/[\w./-]+\.(?:py|yaml|sh|md|txt|json))`", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_the_map_names_every_package_and_nothing_that_is_not_there() -> None:
    text = (ROOT / "tau2rl" / "README.md").read_text(encoding="utf-8")
    package = ROOT / "tau2rl"
    there = {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").exists()}
    there |= {p.name for p in package.glob("*.py") if p.name != "__main__.py"}
    tree = text.partition("\n    ")[2].partition("\n\n")[0]  # the indented block: what stands before each description
    drawn = {name for line in tree.splitlines() for name in re.findall(r"[\w]+(?:/|\.py)", line.strip().partition("   ")[0])}
    assert there - drawn == set()
    assert drawn - there == set()
    named = set(re.findall(r"`((?:[a-z_0-9]+/)+(?:[a-z_0-9]+\.py)?|[a-z_]+\.py)`", text))
    assert [name for name in named if not (package / name).exists()] == []


@pytest.mark.parametrize("file", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_names_its_stage_and_loads(file: Path) -> None:
    values = read_config_file(file)
    assert build(STAGES[values["stage"]], values)


def commands(document: Path) -> Iterator[list[str]]:
    """The words of every `tau2rl` command in a block of code, but for those that are shown to be refused."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^    (?:\$ )?((?:\.venv/bin/)?tau2rl .*)$(?!\n    error: )", text, flags=re.MULTILINE):
        yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_in_a_document_could_be_typed(document: Path) -> None:
    for words in commands(document):
        command: Any = typer.main.get_command(app)
        path: list[str] = []
        while words and words[0] in getattr(command, "commands", {}):
            path.append(words[0])
            command = command.commands[words.pop(0)]
        if words == ["..."]:
            continue
        values = command.make_context(" ".join(path), words).params  # raises for an option that there is not
        stage = {"run": "pipeline"}.get(path[-1], path[-1])
        names = [item.partition("=")[0] for item in values.get("sets") or ()]
        unknown = [name for name in names if stage in STAGES and name not in known_names(STAGES[stage])]
        assert [name for name in unknown if not name.startswith("steps.")] == [], words
        file = values.get("config")
        assert not str(file).startswith("configs/") or (ROOT / str(file)).exists(), words


LEFT = {"seed": [ROWS["seed"], "dropped.jsonl"], "rft-filter": [ROWS["rft-filter"], "dropped.jsonl"]}
OF_A_RUN = r"config\.json|report\.json|episodes\.jsonl|failures\.jsonl|val/step_\d{5}\.jsonl"
OF_A_TRAINING = r"checkpoints(/(final|initial|selected|state|step_\d{5}|hf(/\d+)?|megatron(/iter_\d{7})?))?"
FREE = {
    "default", "a", "b", "x", "first", "before", "after", "NAME", "my-checkpoint",
    "train-1", "train-2", "at-20", "at-40", "sft", "rft", "grpo", "final", "mine", "retail",
}  # names that stand for the reader's own  # fmt: skip


def named_outputs() -> Iterator[tuple[str, str, str, str]]:
    """(place, stage, name of the run, file in it) of everything below `outputs/` that a text for people names."""
    texts = [
        *DOCUMENTS,
        *(ROOT / "configs").rglob("*.yaml"),
        *(ROOT / "scripts").glob("*.sh"),
        ROOT / "tau2rl" / "cli" / "__init__.py",
    ]
    for file in texts:
        for stage, name, path in re.findall(r"outputs/([a-z-]+)/([\w.-]+)((?:/[\w.-]+)*)", file.read_text(encoding="utf-8")):
            if stage in STAGES:
                yield str(file.relative_to(ROOT)), stage, name, path.strip("/").rstrip(".")


def test_every_file_of_a_run_that_is_named_is_one_that_its_stage_leaves() -> None:
    wrong: list[str] = []
    for place, stage, name, path in named_outputs():
        known = [re.escape(file) for file in LEFT.get(stage, [])] + [OF_A_RUN]
        known += [OF_A_TRAINING] if stage in ("sft", "grpo") else []
        if path and not re.fullmatch("|".join(known), path):
            wrong.append(f"{place}: outputs/{stage}/{name}/{path}")
    assert wrong == []


def test_every_run_that_is_named_is_made_by_a_config_or_a_command() -> None:
    made = {
        (values["stage"], values.get("name", "default")) for values in map(read_config_file, (ROOT / "configs").rglob("*.yaml"))
    }
    for document in DOCUMENTS:
        for words in commands(document):
            if "--name" in words:
                made.add((words[0], words[words.index("--name") + 1]))
    unmade = {(place, stage, name) for place, stage, name, _ in named_outputs() if name not in FREE and (stage, name) not in made}
    assert unmade == set()


def test_the_table_of_settings_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "eval.md").read_text(encoding="utf-8")
    table = text.partition("## Settings")[2].partition("## Config files")[0]
    told: list[str] = []
    for cell in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", cell):  # `policy.sampling.temperature`, `.top_p`
            told.append(told[-1].rpartition(".")[0] + name if name.startswith(".") else name)
    every = known_names(EvalConfig)
    settings = {name for name in every if not any(other.startswith(f"{name}.") for other in every)}
    assert set(told) == settings - {"stage"}
