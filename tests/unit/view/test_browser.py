"""The pages in a real browser, Debian's chromium through playwright. Skipped, with the reason, where either is missing.

- runs load, are filtered and searched; an episode opens, two stand side by side with the first difference marked;
- a pipeline leads to a task before and after its training; tokens have a legend; the keyboard reaches everything;
- what a run writes appears by itself, and what is focused stays so; dark mode; 390 px without a horizontal scroll bar;
- every kind of page has its picture, none wider than a phone (slow);
- hostile text acts nowhere: no dialog, no request to elsewhere, no script; another token gets nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tau2rl.runs.records import encode
from tests.viewing import append, chromium, make_pipeline, make_run, record, serving

pytestmark = pytest.mark.browser
LONG = "x" * 10_000_000
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests."""
    with chromium() as found:
        yield found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A pipeline, and a run of its own with hostile text and 10 MB of it."""
    make_pipeline(tmp_path / "outputs" / "pipeline" / "laptop")
    append(make_run(tmp_path / "outputs" / "eval" / "a"), encode(record(3, solved=False, says=LONG)))
    return tmp_path / "outputs"


@pytest.fixture
def page(browser: Any, place: Path) -> Iterator[Any]:
    """The list of runs, at a phone's width; fails the test for an error, a dialog or a request to elsewhere."""
    problems: list[str] = []
    with serving(place) as address:
        context = browser.new_context(viewport={"width": 390, "height": 800})
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: f"//{address}/" in request.url or problems.append(request.url))
        page.goto(f"http://{address}/secret/")
        page.wait_for_selector("tbody a.row")
        yield page
        context.close()
    assert problems == []


def width(page: Any) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth"))


def test_filter_search_open_and_what_is_written_meanwhile(page: Any, place: Path) -> None:
    page.click("text=a<b>")
    page.fill("input[type=search]", "alert")
    page.press("input[type=search]", "Enter")
    page.wait_for_selector("#total >> text=of 2")
    page.evaluate("document.querySelector('tbody a.row').focus()")
    append(place / "eval" / "a", encode(record(8, solved=False, says="alert once more")))
    page.wait_for_selector("#total >> text=of 3")
    assert page.evaluate("document.activeElement.className") == "row"  # the keyboard's place is kept
    page.select_option("select[name=status]", "failed")
    page.wait_for_selector("#total >> text=of 1")
    assert "text=alert" in page.url
    assert "status=failed" in page.url
    address = page.url
    page.goto("about:blank")
    page.goto(address)  # a deep link
    page.wait_for_selector("#total >> text=of 1")
    assert width(page) <= 390


def test_hostile_and_endless_text_is_text(page: Any, place: Path) -> None:
    page.click("text=a<b>")
    page.click("text=mock/update_task_1#0")
    said = page.wait_for_selector("article >> text=<script>alert(1)</script>").inner_text()
    assert "\\x1b[2J" in said
    assert not set(said) & {"\x1b", "\0", "\u202e"}
    assert page.locator("article script, article img").count() == 0
    assert width(page) <= 390
    page.go_back()
    page.click("text=mock/create_task_1#3")
    page.wait_for_selector("text=9,980,000 more characters")
    assert width(page) <= 390


def test_keyboard_tokens_legend_and_dark_mode(page: Any) -> None:
    page.click("text=a<b>")
    page.wait_for_selector("#total")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector("article")
    page.keyboard.press("t")
    assert "sampled, in the loss" in page.wait_for_selector(".tokens .legendline").inner_text()
    page.select_option("select[aria-label='colored by']", "advantage")
    page.wait_for_selector(".ramp.advantage")
    assert page.locator(".sampled .token[style*='background-color']").count() > 0
    page.keyboard.press("g")
    page.wait_for_selector("table.lanes .chip.call")
    assert page.locator(".chip.call").first.bounding_box()["width"] > 80  # a turn is read on a phone, too
    assert width(page) <= 390
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("d")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.keyboard.press("u")
    page.wait_for_selector("article")
    page.keyboard.press("u")
    page.wait_for_selector("#total")


def test_tokens_have_the_color_of_the_mismatch_between_sampler_and_trainer(page: Any) -> None:
    page.click("text=02-grpo >> nth=0")
    page.click("tbody a.row >> text=mock/create_task_1#3")
    page.wait_for_selector("article")
    page.keyboard.press("t")
    page.select_option("select[aria-label='colored by']", "sampler-trainer mismatch")
    legend = page.wait_for_selector(".tokens .legendline >> text=+0.250").inner_text()
    assert "mean size 0.25, largest 0.25" in legend
    colored = page.locator(".sampled .token")
    assert "trainer +0.2500" in colored.first.get_attribute("title")
    assert "40, 170, 90" in colored.first.evaluate("each => each.style.backgroundColor")  # likelier: green
    assert page.locator(".given .token[style]").count() == 0
    assert width(page) <= 390


def test_from_a_pipeline_to_a_task_before_and_after(page: Any) -> None:
    page.click("text=laptop")
    page.wait_for_selector("svg text.rise >> text=+1.00")
    assert page.locator("table.stages tbody tr").count() == 3
    assert width(page) <= 390
    page.click("table.changed a.row >> text=mock/create_task_1")
    page.wait_for_selector("text=first difference at message")
    assert "/compare/" in page.url
    assert page.locator("article.first").count() == 2
    assert page.locator(".pair .badge").all_inner_texts() == ["unsolved", "solved"]
    assert width(page) <= 390
    page.select_option("select[aria-label='attempt of A']", label="#1 unsolved")
    page.wait_for_selector(".pair >> text=mock/create_task_1#1")


def test_curves_over_one_another_while_a_training_goes_on(page: Any, place: Path) -> None:
    page.click("text=02-grpo >> nth=0")
    page.wait_for_selector(".charts.key figure >> text=success")  # at the head of the training's own page
    assert page.locator("text=pass@1").count() == 0  # its attempts are of several models
    page.click("a.button >> text=curves")
    page.wait_for_selector(".flat >> text=the same all the time: lr 0.5")
    assert page.locator("figure").count() == 1
    with (place / "pipeline" / "laptop" / "runs" / "02-grpo" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "success": 1.0, "train/kl": 0.1}\n{"step": 5, "succ')
    page.wait_for_selector("figure >> text=train/kl")
    assert width(page) <= 390


@pytest.mark.slow
def test_every_kind_of_page_has_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("make_screenshots", ROOT / "scripts" / "make_screenshots.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "WAYS", {"phone": {"viewport": script.WAYS["phone"]["viewport"]}})
    with ThreadPoolExecutor(1) as pool:  # the other tests' browser has an event loop in this thread
        pool.submit(script.main, make_pipeline(tmp_path / "p"), tmp_path / "pictures").result()
    taken = {file.name: file.read_bytes() for file in (tmp_path / "pictures").iterdir()}
    assert len(taken) == 10
    widths = {int.from_bytes(content[16:20], "big") for content in taken.values()}  # of the PNG's header
    assert widths == {390}  # nothing is wider than the screen


def test_another_token_shows_nothing(page: Any) -> None:
    origin = page.url.split("/secret/")[0]
    assert page.context.request.get(f"{origin}/secre/").status == 404
    assert page.context.request.get(f"{origin}/secret/api/runs", headers={"Origin": "http://evil.example"}).body() == b""
