"""The documentation names what exists.

- every relative link and every file named in the map and the documents is in the tree
- every room has its line in the map
- every config file that a document names loads
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tau2rl.config import STAGES, build, read_file

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


def test_the_map_names_every_room_and_every_file_of_it() -> None:
    text = (ROOT / "tau2rl" / "README.md").read_text(encoding="utf-8")
    rooms = [p.name for p in (ROOT / "tau2rl").iterdir() if p.is_dir() and (p / "__init__.py").exists()]
    assert [room for room in rooms if f"{room}/" not in text] == []


@pytest.mark.parametrize("file", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_names_its_stage_and_loads(file: Path) -> None:
    values = read_file(file)
    assert build(STAGES[values["stage"]], values)
