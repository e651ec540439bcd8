"""What a command loads before it does anything, pinned here; seconds depend on the machine, modules do not.

- no help, no list and no printing of settings imports a library of machine learning, of statistics or of networks;
- the list of all commands imports none of them, and no setting; the help of one imports no other command;
- how many modules there are has room for what a new version of a library brings, and none for a forgotten import;
- what the list says of a command is the first paragraph of its own help.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import typer

from tau2rl.cli import COMMANDS, app

HEAVY = {
    "aiohttp", "gymnasium", "httpx", "jinja2", "litellm", "loguru", "numpy", "openai", "pandas", "peft", "plotly", "ray",
    "requests", "safetensors", "scipy", "tau2", "tokenizers", "torch", "transformers", "wandb",
}  # fmt: skip
PROGRAM = """
import json, sys
from tau2rl.cli import main
sys.argv[0] = "tau2rl"
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def loaded(*words: str) -> set[str]:
    """The modules that a command line has loaded when it ends."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (["--version"], 400),
        (["--help"], 480),  # the words of rich and Typer
        (["grpo", "--help"], 650),  # and of pydantic and YAML, and every setting
        (["run", "--help"], 650),
        (["tasks", "--help"], 650),
        (["report", "--help"], 650),
        (["config", "show"], 450),
        (["config", "show", "--stage", "grpo", "--json"], 450),
        (["bench", "--list"], 500),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_no_heavy_library_is_loaded_for_words(words: list[str], most: int) -> None:
    modules = loaded(*words)
    assert not {name.partition(".")[0] for name in modules} & HEAVY
    assert len(modules) < most


def test_a_list_loads_no_command_and_a_command_no_other() -> None:
    assert {name for name in loaded("--help") if name.startswith("tau2rl.cli.")} == {"tau2rl.cli.lazy"}
    assert not {name for name in loaded("--help") if name.startswith(("tau2rl.config", "yaml"))}
    commands = {late.where.partition(":")[0] for late in COMMANDS.values()}
    assert loaded("grpo", "--help") & commands == {"tau2rl.cli.stages"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says_of_itself(name: str) -> None:
    group: Any = typer.main.get_command(app)
    whole = group.commands[name]
    listed = group.get_command(typer.Context(group), name)
    assert " ".join(whole.help.partition("\n\n")[0].split()) == listed.help
    assert (whole.name, whole.rich_help_panel) == (listed.name, listed.rich_help_panel)


def test_what_does_not_exist_is_no_command() -> None:
    group: Any = typer.main.get_command(app)
    assert group.get_command(typer.Context(group), "evl") is None
    assert list(group.commands) == group.list_commands(typer.Context(group)) == list(COMMANDS)
