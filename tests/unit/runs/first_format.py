"""Run folders that 635ae84 wrote; see `tests/fixtures/README.md`."""

from __future__ import annotations

import tarfile
from pathlib import Path

ARCHIVE = Path(__file__).parents[2] / "fixtures" / "runs_635ae84.tar.gz"
WRITTEN_AT = "/data/old"


def unpacked(folder: Path) -> Path:
    """The run folders below `folder`, with their own paths put right."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix in (".json", ".jsonl", ".log"):
            file.write_text(file.read_text("utf-8").replace(WRITTEN_AT, str(folder)), "utf-8")
    return folder
