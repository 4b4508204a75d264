"""The page in a real browser: what people see, hear and can take away."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from conftest import (
    FOREVER,
    HOSTILE,
    HOSTILE_MARKDOWN,
    MARKDOWN,
    MARKED_IMAGE,
    PROBLEM,
    STATIC,
    answer,
)

from lightthinker.tasks import count_tokens, solve
from lightthinker.tasks.problem import Problem
from lightthinker.testing.fake_server import FakeServer

SLOW_S = 30.0
CONTROLS = {
    "button", "textbox", "radio", "combobox", "spinbutton", "link", "listbox", "checkbox", "image",
    "img",
}  # fmt: skip
SIZES = [count_tokens(thought) + 1 for thought in PROBLEM.thoughts]


def ask(page, question: str, mode: str = "on") -> None:  # type: ignore[no-untyped-def]
    page.check(f"input[name=mode][value={mode}]", force=True)
    page.fill("#question", question)
    page.press("#question", "Enter")


def done(page, runs: int = 1) -> None:  # type: ignore[no-untyped-def]
    page.locator(".cost").nth(runs - 1).wait_for()


def test_thoughts_fold_and_open_again(visit, server) -> None:  # type: ignore[no-untyped-def]
    page = visit()
    ask(page, PROBLEM.question)
    done(page)

    heads = page.locator(".thought.folded.closed .head")
    names = [heads.nth(i).get_attribute("aria-label") for i in range(heads.count())]
    assert names == [
        f"Thought {i + 1}: {size} tokens compressed to 4 gists" for i, size in enumerate(SIZES)
    ]
    assert page.locator(".thought .gists i").count() == 4 * len(SIZES)
    body = page.locator(".thought .body").first
    body.wait_for(state="hidden")
    assert heads.first.get_attribute("aria-expanded") == "false"
    heads.first.click()
    body.wait_for(state="visible")
    assert heads.count() == len(SIZES) - 1
    assert body.inner_text().startswith(PROBLEM.thoughts[0])
    assert page.inner_text(".answer .text") == PROBLEM.answer

    prompt, text = count_tokens(PROBLEM.question), count_tokens(PROBLEM.answer)
    live = prompt + 5 * len(SIZES) + text
    full = prompt + sum(SIZES) + text
    assert page.inner_text(".big b.ours") == str(live)
    assert page.inner_text(".big b.full") == str(full)
    assert page.inner_text("[data-counter=freed] dd") == str(sum(SIZES))
    assert page.inner_text("[data-counter=gists] dd") == str(4 * len(SIZES))
    assert f"{live} KV tokens now" in page.get_attribute(".plot", "aria-label")
    assert page.locator(".plot .series.ours .line").count() == 1
    assert page.inner_text("#announcer").endswith(PROBLEM.answer)
    request = server.requests[0]
    assert request["lightthinker"] == {"compression": True, "events": True}
    assert request["stream_options"] == {"include_usage": True}


def test_the_chart_answers_pointer_and_keys(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit()
    ask(page, PROBLEM.question)
    done(page)

    page.focus(".plot")
    page.keyboard.press("ArrowLeft")

    assert page.is_visible(".tip")
    assert "full CoT" in page.inner_text(".tip")
    assert "KiB" in page.inner_text(".tip")
    page.click(".axes button[data-axis=seconds]")
    assert "seconds" in page.inner_html(".plot")


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_stop_ends_the_request(visit, server, way: str) -> None:  # type: ignore[no-untyped-def]
    page = visit()
    ask(page, FOREVER)
    page.wait_for_selector(".thought.folded")

    if way == "button":
        page.click("#stop")
    else:
        page.keyboard.press("Escape")

    page.wait_for_selector("text=Stopped.")
    assert server.aborted.wait(SLOW_S)
    assert page.is_visible("#send")
    assert not page.is_visible("#stop")
    ask(page, PROBLEM.question)
    done(page, runs=2)
    assert [m["role"] for m in server.requests[-1]["messages"]] == ["user"]


def test_side_by_side_runs_both_ways_at_once(visit, server) -> None:  # type: ignore[no-untyped-def]
    page = visit()
    ask(page, PROBLEM.question, "both")
    done(page, runs=2)

    assert sorted(r["lightthinker"]["compression"] for r in server.requests) == [False, True]
    assert page.locator(".run.ours .thought.folded").count() == len(SIZES)
    kept = page.locator(".run.full .thought.kept:not(.closed) .text")
    assert tuple(kept.all_inner_texts()) == PROBLEM.thoughts
    left, right = (page.locator(f".run.{kind}").bounding_box() for kind in ("ours", "full"))
    assert left["x"] + left["width"] <= right["x"]
    assert page.get_attribute(".axes button[data-axis=seconds]", "aria-pressed") == "true"
    for kind in ("ours", "full"):
        assert page.locator(f".plot .series.{kind} .line").count() == 1


def test_later_turns_carry_answers_without_reasoning(visit, server) -> None:  # type: ignore[no-untyped-def]
    page = visit()
    ask(page, "first")
    done(page)
    ask(page, "second")
    done(page, runs=2)

    assert server.requests[1]["messages"] == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": PROBLEM.answer},
        {"role": "user", "content": "second"},
    ]


def test_export(visit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = visit()
    ask(page, HOSTILE)
    done(page)

    page.click("#export")
    with page.expect_download() as data:
        page.click("#export-json")
    page.click("#export")
    with page.expect_download() as document:
        page.click("#export-html")

    transcript = json.loads(Path(data.value.path()).read_text(encoding="utf-8"))
    run = transcript["turns"][0]["runs"][0]
    assert transcript["format"] == "lightthinker-transcript/1"
    assert transcript["turns"][0]["question"] == HOSTILE
    assert [t["num_gists"] for t in run["thoughts"]] == [4, 4]
    assert run["kv_curve"][-1]["live_tokens"] < run["kv_curve"][-1]["full_cot_tokens"]
    assert run["usage"]["lightthinker"]["thoughts"] == 2
    saved = tmp_path / "transcript.html"
    document.value.save_as(saved)
    shown = visit(saved.as_uri())
    assert shown.inner_text(".asked") == HOSTILE
    assert shown.locator("img, script").count() == 0
    assert shown.title() == "LightThinker transcript"
    shown.locator("summary").first.click()
    assert shown.locator("details[open]").count() == 1


def test_hostile_text_is_inert(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit()
    ask(page, HOSTILE)
    done(page)

    assert page.inner_text(".asked") == HOSTILE
    written = "".join(HOSTILE.split())
    assert "".join(page.inner_text(".answer .text").split()) == written
    assert page.locator("#turns img, #turns script, #turns style").count() == 0
    assert page.title() == "LightThinker"


RENDERED = """
<h4><strong>Result</strong></h4>
<p>Let <em>x</em> be <code>a*b*c</code>, and
<strong>2**3 = 8</strong>; snake_case_name, $a_1*b_1*c$, 2*3*4.</p>
<ol><li>first<ul><li>inner <code>x &lt; y</code></li></ul></li><li>second</li></ol>
<div class="scrolls"><table><thead><tr><th>n</th><th>square</th></tr></thead>
<tbody><tr><td>2</td><td><strong>4</strong></td></tr></tbody></table></div>
<pre><code>print("**raw**")

# no heading</code></pre>
<p>\\[
- x_1 * y_1
\\]</p>
<p>a [link](https://example.org) &lt;b&gt;is text&lt;/b&gt;</p>
"""


def flat(html: str) -> str:
    return html.strip().replace(">\n<", "><")


def test_answers_are_rendered_as_markdown(visit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = visit()
    ask(page, MARKDOWN)
    done(page)
    page.click("#export")
    with page.expect_download() as document:
        page.click("#export-html")
    saved = tmp_path / "transcript.html"
    document.value.save_as(saved)

    assert flat(page.inner_html(".answer .text")) == flat(RENDERED)
    assert page.inner_text(".asked") == MARKDOWN
    assert flat(visit(saved.as_uri()).inner_html(".answer .text")) == flat(RENDERED)


def test_hostile_markdown_is_inert(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit()
    ask(page, HOSTILE_MARKDOWN)
    done(page)

    assert page.locator("#turns img, #turns script, #turns a").count() == 0
    assert page.title() == "LightThinker"
    for element in ("h4", "strong", "em", "p code", "li", "th:first-child", "td:last-child"):
        assert page.locator(f".answer .text {element}").inner_text() == MARKED_IMAGE, element
    assert page.locator("pre code").inner_text() == f"{MARKED_IMAGE}</code></pre>{MARKED_IMAGE}"


ODD = [
    "", "*", "**", "***a***", "**a", "a**", "``a`b``", "* * *", "- - - - - - - - - x", "$$\nx",
    "|a|\n|-|", "```", "```\n\n", "1)", "$5 and $6 *are* dollars", "\\*no\\*", "_a_ __b__",
    "~~~\n~~~x",
]  # fmt: skip
GROWS = """async (texts) => {
  const { MarkdownView } = await import("./static/js/markdown.js");
  const make = () => new MarkdownView(document.createElement("div"));
  return texts.map((text) => {
    const [grown, whole] = [make(), make()];
    for (let n = 1; n <= text.length; n += 1) grown.update(text.slice(0, n));
    whole.update(text);
    return [grown.element.outerHTML, whole.element.outerHTML];
  });
}"""
LONG = """async (pieces) => {
  const { MarkdownView } = await import("./static/js/markdown.js");
  return pieces.map((piece) => {
    const view = new MarkdownView(document.createElement("div"));
    view.update(piece.repeat(200000 / piece.length));
    return view.element.textContent.length;
  });
}"""


def test_markdown_that_streams_looks_as_if_it_came_at_once(visit) -> None:  # type: ignore[no-untyped-def]
    pairs = visit().evaluate(GROWS, [MARKDOWN, HOSTILE_MARKDOWN, *ODD])

    for grown, whole in pairs:
        assert grown == whole
    shown = dict(zip(ODD, (whole for _, whole in pairs[2:]), strict=True))
    assert "<strong><em>a</em></strong>" in shown["***a***"]
    assert "<em>are</em>" in shown["$5 and $6 *are* dollars"]
    assert shown["~~~\n~~~x"] == "<div><pre><code>~~~x</code></pre></div>"
    assert shown["\\*no\\*"] == "<div><p>*no*</p></div>"


@pytest.mark.timeout(120)
def test_markdown_of_any_kind_takes_time_in_proportion(visit) -> None:  # type: ignore[no-untyped-def]
    pieces = [
        "**a ",
        "*a **b ",
        "`a ",
        "``a`",
        "$a ",
        "\\[a ",
        "- ",
        "> ",
        "|a|\n",
        "- a\n  ",
        "_",
        "\n",
    ]

    lengths = visit().evaluate(LONG, pieces)

    assert len(lengths) == len(pieces)


def test_every_control_has_a_name(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit()
    page.wait_for_selector(".examples button")
    seen = unnamed(page)
    ask(page, PROBLEM.question, "both")
    done(page, runs=2)
    page.click("#export")
    seen += unnamed(page)
    page.click("#open-settings")
    seen += unnamed(page)

    assert len(seen) > 40
    assert [role for role, name in seen if not name] == []


def unnamed(page) -> list[tuple[str, str]]:  # type: ignore[no-untyped-def]
    """Return role and name of every control in the accessibility tree."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    return [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"] and node["role"]["value"] in CONTROLS
    ]


def test_an_api_key_is_asked_for_and_kept_for_the_tab(browser) -> None:  # type: ignore[no-untyped-def]
    with FakeServer(answer, api_key="sesame", static=STATIC) as server:
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector("dialog[open] #settings-note")
        page.fill("#api-key", "sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("#model-name:has-text('scripted')")
        ask(page, PROBLEM.question)
        done(page)

        assert page.evaluate("sessionStorage.getItem('lightthinker.key')") == "sesame"
        assert page.evaluate("Object.values(localStorage).join()") == ""
        page.close()


@pytest.mark.parametrize("width", [320, 820])
def test_nothing_is_wider_than_a_small_screen(visit, width: int) -> None:  # type: ignore[no-untyped-def]
    page = visit(width=width, height=700)
    ask(page, PROBLEM.question, "both")
    done(page, runs=2)

    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_theme_follows_the_system_until_chosen(visit) -> None:  # type: ignore[no-untyped-def]
    page = visit(scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.click("#theme")
    light = page.evaluate(background)
    page.reload()

    assert dark != light
    assert page.evaluate(background) == light


def test_examples_are_the_tasks_own() -> None:
    path = Path(__file__).parents[2] / "scripts" / "update_page_examples.py"
    spec = importlib.util.spec_from_file_location("update_page_examples", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    shipped = json.loads((STATIC / "examples.json").read_text(encoding="utf-8"))["examples"]

    assert shipped == script.examples()
    for example in shipped:
        problem = Problem(
            family=example["family"], question=example["question"], thoughts=(), answer="",
            value="", chance=0.0, lookups=(), difficulty="",
        )  # fmt: skip
        assert solve(problem) == example["value"]


def test_the_page_names_nothing_outside_itself() -> None:
    for path in STATIC.rglob("*.*"):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//cdn" not in text, path
        assert "http" not in text.replace("http-equiv", ""), path
        assert "innerHTML" not in text, path
        assert " style=" not in text, path
