"""A sink of the user's that writes down what it is told, each call a line of `told.jsonl` in the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Told:
    """Takes all that there is."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._file = (folder / "told.jsonl").open("a", encoding="utf-8")
        self._tell("start", config["stage"])

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._tell("write", step)

    def show(self, step: int, conversations: Sequence[Any]) -> None:
        self._tell("show", step, [each.row(step) for each in conversations])

    def lineage(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        self._tell("lineage", inputs, outputs)

    def close(self) -> None:
        if not self._file.closed:
            self._tell("close")
            self._file.close()

    def _tell(self, *what: Any) -> None:
        self._file.write(json.dumps(what) + "\n")
        self._file.flush()
