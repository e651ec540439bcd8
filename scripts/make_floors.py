"""Write `tau2rl/env/floors.json` again from the installed tau2 data, by replay.

Takes minutes of CPU time; run it when the data moves.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tau2rl.env.audit import measure_floors
from tau2rl.env.domain import domain
from tau2rl.env.factory import OWN
from tau2rl.types import TaskRef

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    table = {
        name: measure_floors(name, [TaskRef(domain=name, task_id=i, split="base") for i in domain(name).tasks("base")])
        for name in OWN
    }
    target = Path(__file__).parent.parent / "tau2rl" / "env" / "floors.json"
    target.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
