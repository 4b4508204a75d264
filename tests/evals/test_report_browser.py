"""The report in a real browser: no errors, nothing overflows, keyboard, light and dark."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightthinker.evals.report import render_report
from lightthinker.evals.results import EvalResults, RunInfo
from lightthinker.testing.records import simulated_record

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
METHODS = (
    "full_cot", "lightthinker", "h2o:match=mean", "random:match=peak", "streaming_llm:budget=120",
)  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [
        simulated_record(
            f"p{i}", method=method, family=("programs", "multiplication")[i % 2],
            thoughts=("x=1+2;x=3", f"y=x+4;y={'7' if method == 'full_cot' else '8'}"),
            lengths=(30 + i, 60), correct=not method.startswith("h2o"),
        )
        for i in range(6) for method in METHODS
    ]  # fmt: skip
    info = RunInfo(
        benchmark={"name": "tasks", "difficulty": "demo"}, model={"name": "m", "sha256": "0" * 64},
        device="cpu", seed=0, command="lightthinker eval m",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(EvalResults.from_records(records, info), records), "utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        launched = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 1100), ("light", 390)])
def test_the_page_is_quiet_and_nothing_overflows(
    browser: Any, page_file: Path, scheme: str, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: messages.append(request.url))
    page.goto(page_file.as_uri())

    assert [m for m in messages if not m.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert (brightness < 100) == (scheme == "dark")
    outside = page.evaluate(
        """() => [...document.querySelectorAll('svg[role=img]')]
            .filter(svg => svg.getBoundingClientRect().width)
            .flatMap(svg => { const frame = svg.getBoundingClientRect();
                return [...svg.querySelectorAll('text')].filter(t => {
                    const box = t.getBoundingClientRect();
                    return box.left < frame.left - 1 || box.right > frame.right + 1 ||
                        box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
                }).map(t => t.textContent) })"""
    )
    assert outside == []
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('svg')].filter(svg =>
            !svg.closest('[aria-hidden=true]') && !svg.getAttribute('aria-labelledby')).length"""
    )
    assert unnamed == 0
    page.close()


def test_samples_open_and_filter_by_keyboard(browser: Any, page_file: Path) -> None:
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.goto(page_file.as_uri())
    visible = "() => [...document.querySelectorAll('.sample')].filter(s => s.offsetParent).length"

    assert page.evaluate(visible) == 6
    page.focus("#show-all")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "show-differ"
    assert page.evaluate(visible) == 0
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "show-disagree"
    assert page.evaluate(visible) == 6

    page.focus(".sample summary")
    page.keyboard.press("Enter")
    text = page.inner_text(".sample[open]")
    assert "Expected answer: 86" in text
    assert "4 gists" in text
    h2o = page.locator(".sample[open] .run", has_text="H2O")
    h2o.locator("summary").press("Enter")
    parted = h2o.locator("li.parts").inner_text()
    assert "not what full CoT wrote" in parted
    assert "y=x+4;y=8" in parted
    page.close()
