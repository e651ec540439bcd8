"""What a training on a cluster would run, before anything is submitted: slime's command line, and what is wrong with it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tau2rl.config import GrpoConfig, SftConfig
from tau2rl.store.run import run_path


def slime_plan(config: SftConfig | GrpoConfig) -> dict[str, Any]:
    """`argv` of slime's script, `layout` in lines for people, `problems` that the settings alone show.

    Where the checkpoint is not on this machine, the options that build the model are left out. What only the machine that
    trains can show (devices, files, disk, ports) is checked there, before slime starts. Raises UserError.
    """
    from tau2rl.backends.slime.argv import build_argv
    from tau2rl.backends.slime.handover import SlimeRun, absolute, script
    from tau2rl.backends.slime.layout import layout_of
    from tau2rl.backends.slime.model_shape import read_shape
    from tau2rl.backends.slime.preflight import preflight

    config = absolute(config)
    checkpoint = Path(config.model.init)
    here = (checkpoint / "config.json").exists()
    run = SlimeRun(folder=run_path(config).absolute(), shape=read_shape(checkpoint) if here else None)
    return {
        "argv": ["python3", str(script(config)), *build_argv(config, run)],
        "layout": list(layout_of(config).lines()),
        "problems": [asdict(problem) for problem in preflight(config)],
    }
