"""A scripted server with the real page, and headless Chromium to look at it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lightthinker
from lightthinker.tasks import generate
from lightthinker.testing.fake_server import FakeServer, Script

STATIC = Path(lightthinker.__file__).parent / "server" / "static"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PROBLEM = generate("programs", seed=7, difficulty="tiny")
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"></style><script>document.title='owned'</script>"
)

MARKDOWN = """# **Result**
Let *x* be `a*b*c`, and
**2**3 = 8**; snake_case_name, $a_1*b_1*c$, 2*3*4.

1. first
   - inner `x < y`
2. second

| n | square |
|---|:--:|
| 2 | **4** |

```python
print("**raw**")

# no heading
```

\\[
- x_1 * y_1
\\]
a [link](https://example.org) <b>is text</b>"""
MARKED_IMAGE = '<img src=x onerror="document.title=1">'
HOSTILE_MARKDOWN = f"""# {MARKED_IMAGE}
**{MARKED_IMAGE}** *{MARKED_IMAGE}* `{MARKED_IMAGE}`
- {MARKED_IMAGE}

| {MARKED_IMAGE} | b |
|---|---|
| [x](javascript:alert(1)) | {MARKED_IMAGE} |

```{MARKED_IMAGE}
{MARKED_IMAGE}</code></pre>{MARKED_IMAGE}
```"""
FOREVER = "forever"
TROUBLE = ("error", "warning")


def answer(question: str) -> Script:
    """Script: an endless one, Markdown, hostile markup, or the reference trace of `PROBLEM`."""
    if question == FOREVER:
        return Script([" ".join(["step by step"] * 12)], "", endless=True)
    if question in (MARKDOWN, HOSTILE_MARKDOWN):
        return Script(["It is asked for.", "Write it."], question)
    if question == HOSTILE:
        return Script([HOSTILE, "and so on"], HOSTILE)
    return Script(PROBLEM.thoughts, PROBLEM.answer)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Chromium for one module: while it runs, no other event loop can in this thread."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(answer, pause_s=0.002, static=STATIC) as server:
        yield server


@pytest.fixture
def visit(browser, server) -> Iterator[Callable]:  # type: ignore[no-untyped-def]
    """Open the page, and at the end insist that its console is free of errors."""
    contexts, troubles = [], []

    def open_page(url: str | None = None, width: int = 1280, height: int = 860, scheme="light"):  # type: ignore[no-untyped-def]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda m: troubles.append(m.text) if m.type in TROUBLE else None)
        page.goto(url or server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []
