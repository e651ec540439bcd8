"""The screens of `tau2rl top`: the run, and one conversation of it. The only module that imports textual; imported late."""

from __future__ import annotations

import asyncio
from typing import ClassVar, cast

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static

from tau2rl.cli.show import conversation_pieces
from tau2rl.cli.top import HEAD, Piece, cells, top_lines
from tau2rl.errors import UserError
from tau2rl.terminal import clean
from tau2rl.view import runs
from tau2rl.view.top import Frame, Watch


def pane_text(pieces: list[Piece]) -> Text:
    """Styled text without anything that a terminal would obey, and without markup."""
    return Text.assemble(*((clean(part), style) for part, style in pieces))


class Dashboard(App[None]):
    """Looks at a run every so many seconds until it is left."""

    TITLE = "tau2rl top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #about { height: auto; max-height: 70%; padding: 0 1; }
    #episodes { height: 1fr; min-height: 6; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("j", "move(1)", "Down", show=False),
        Binding("k", "move(-1)", "Up", show=False),
        Binding("r", "look", "Look now"),
    ]

    def __init__(self, watch: Watch, *, every: float) -> None:
        super().__init__()
        self._watch, self._every = watch, every
        self._busy = False

    def compose(self) -> ComposeResult:
        """What is known above, the last episodes below."""
        with VerticalScroll(id="about", can_focus=False):
            yield Static("looking", id="text", markup=False)
        yield DataTable[Text](id="episodes", cursor_type="row", zebra_stripes=True)
        yield Footer()

    async def on_mount(self) -> None:
        """Look, and again and again."""
        self.table.add_columns(*HEAD)
        self.table.focus()
        await self.action_look()
        self.set_interval(self._every, self.action_look)

    async def on_unmount(self) -> None:
        """Let go of the run."""
        await self._watch.aclose()

    @property
    def table(self) -> DataTable[Text]:
        """The last episodes."""
        return cast("DataTable[Text]", self.screen_stack[0].query_one("#episodes", DataTable))

    async def action_look(self) -> None:
        """Read the run and draw it; nothing while an earlier look goes on."""
        if self._busy:
            return
        self._busy = True
        try:
            self.draw(await self._watch.frame())
        except (UserError, OSError) as error:  # the folder went away
            self.screen_stack[0].query_one("#text", Static).update(pane_text([(f"cannot read the run: {error}", "red")]))
        finally:
            self._busy = False

    def draw(self, frame: Frame) -> None:
        """Show a frame; the cursor stays at its episode."""
        self.screen_stack[0].query_one("#text", Static).update(pane_text(top_lines(frame)))
        table = self.table
        keys = [str(row["id"]) for row in frame.episodes]
        if keys == [key.value for key in table.rows]:
            return
        follows = not table.row_count or table.cursor_row == 0  # at the top it stays with what is new
        chosen = None if follows else table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        table.clear()
        for key, row in zip(keys, frame.episodes, strict=True):
            solved = row["reward"] is not None and row["reward"] >= 1 - 1e-6
            style = "green" if solved else "red" if row["status"] == "failed" else ""
            table.add_row(*(Text(clean(cell), style=style) for cell in cells(row)), key=key)
        if chosen in keys:
            table.move_cursor(row=keys.index(chosen), animate=False)

    def action_move(self, by: int) -> None:
        """The episode below or above."""
        self.table.move_cursor(row=self.table.cursor_row + by)

    async def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open an episode."""
        index = self._watch.index
        if index is not None and event.row_key.value is not None:
            try:
                values = await asyncio.to_thread(runs.episode, index.run, index, int(event.row_key.value))
            except (UserError, OSError) as error:  # a resumed run has rewritten its records
                self.notify(clean(str(error)), severity="warning")
                return
            self.push_screen(ConversationPane(conversation_pieces(values, whole=False)))


class ConversationPane(Screen[None]):
    """One conversation, as `tau2rl show` has it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,u", "app.pop_screen", "Back"),
        Binding("j", "scroll(1)", "Down", show=False),
        Binding("k", "scroll(-1)", "Up", show=False),
    ]

    def __init__(self, pieces: list[Piece]) -> None:
        super().__init__()
        self._pieces = pieces

    def compose(self) -> ComposeResult:
        """The text, to scroll through."""
        with VerticalScroll(id="conversation"):
            yield Static(pane_text(self._pieces), markup=False)
        yield Footer()

    def action_scroll(self, by: int) -> None:
        """A few lines down or up."""
        self.query_one("#conversation").scroll_relative(y=3 * by, animate=False)
