"""A sink of your own: the curves of a training as a table.

tracking:
  sinks: ["examples.csv_sink:CsvSink"]
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class CsvSink:
    """Made with the run folder and the resolved settings. What it raises is logged and ends it; the training goes on."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._file = (folder / "curves.csv").open("a", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Append a row for each value of the step."""
        self._rows.writerows((step, name, value) for name, value in values.items() if value is not None)
        self._file.flush()

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()
