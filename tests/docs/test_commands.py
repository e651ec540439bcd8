"""The commands of the documents, pinned here:

- every command of a block that is not marked `not run` is carried out, in small and in the document's order, and ends with 0;
- what a block shows below `$ COMMAND` is what the command prints, where the block is marked `prints`;
- every file that a command names is there, or was made by a command before it.

To write what commands print anew: `GOLDEN=write pytest tests/docs -m ''`, then read the diff.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import DOCUMENTS, ROOT, blocks
from tests.docs.small import World


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_commands_of_a_document_run(document: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a clone"
    folder.mkdir()
    world = World(folder)
    failed: list[str] = []
    with world.server, world.user:
        for block in blocks(document):
            for command in block.commands if block.mark == "" else []:
                try:
                    world.run(command)
                except AssertionError as error:
                    failed.append(f"{block.place}: {error}")
    assert not failed, "\n\n".join(failed)
