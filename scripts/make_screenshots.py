"""The pictures of docs/view.md: the page of a pipeline, and an attempt before its trainings beside one after them.

    python scripts/make_screenshots.py outputs/pipeline/laptop

Needs `.[view,dev]` and Debian's chromium; the pipeline has two evaluations or more, on the same tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE: Any = {"width": 1180, "height": 900}


def main(pipeline: Path) -> None:
    """Serve the pipeline and look at it."""
    import uvicorn
    from playwright.sync_api import sync_playwright

    from tau2rl.view.runs import run_id
    from tau2rl.view.server import Viewer, make_app

    viewer = Viewer([pipeline])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(viewer, "secret"), log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            address = f"http://127.0.0.1:{listener.getsockname()[1]}/secret/#/run/{run_id(pipeline)}"
            _take(browser.new_page(viewport=SIZE), address)
            browser.close()
    finally:
        server.should_exit = True
        thread.join()
        viewer.close()


def _take(page: Page, address: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    page.goto(address)
    page.wait_for_selector("table.changed")
    page.screenshot(path=IMAGES / "view.png", clip={"x": 0, "y": 0, **SIZE}, full_page=True)
    page.click("table.changed a.row >> nth=0")
    page.wait_for_selector("article.first")
    page.screenshot(path=IMAGES / "view-compare.png", clip={"x": 0, "y": 0, **SIZE}, full_page=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path, help="its run folder")
    main(parser.parse_args().pipeline)
