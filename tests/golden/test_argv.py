"""What every config of a cluster becomes: slime's command line and the engines beside it, pinned word by word in `argv/*.txt`.

- every config with `backend: slime` has a golden file, and every golden file has a config;
- whoever changes what a setting means for slime sees the change as a diff of the commands that are paid for.

To accept a change: `GOLDEN=write pytest tests/golden/test_argv.py`, then read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tau2rl.slime.argv import build_argv
from tau2rl.slime.layout import layout_of, sglang_config
from tau2rl.slime.model import shape_of
from tau2rl.slime.options import split
from tau2rl.slime.process import script, slime_variables
from tau2rl.slime.run_context import SlimeRun
from tests.slime_configs import CONFIGS, load_slime, model_of

GOLDEN = Path(__file__).parent / "argv"
WRITE = os.environ.get("GOLDEN") == "write"


def file_of(config: str) -> Path:
    return GOLDEN / f"{config.replace('/', '_').removesuffix('.yaml')}.txt"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_command_is_what_it_was(name: str) -> None:
    config = load_slime(name)
    run = SlimeRun(folder=Path(f"/outputs/{config.stage}/{config.name}"), shape=shape_of(model_of(name)))
    layout = layout_of(config)
    shared = {
        key: value for key, value in slime_variables(config).items() if key != "PYTHONPATH"
    }  # it names this machine's folders
    shown = [str(script(config)), *(" ".join((given.name, *given.values)) for given in split(build_argv(config, run)))]
    shown += ["", *(f"{key}={value}" for key, value in shared.items()), "", *layout.lines()]
    if engines := sglang_config(config.slime, layout):
        shown += ["", yaml.safe_dump(engines, sort_keys=False).rstrip()]
    text = "\n".join(shown) + "\n"
    if WRITE:
        file_of(name).write_text(text, "utf-8")
    assert text == file_of(name).read_text("utf-8")


def test_every_golden_file_has_its_config() -> None:
    assert {file.name for file in GOLDEN.iterdir()} == {file_of(name).name for name in CONFIGS}
