"""The terminal: thoughts fold, the meter measures, and hostile text cannot drive the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from lightthinker.demo.meter import ASCII, Glyphs, costs, folded, meter, printable
from lightthinker.demo.view import show, verdict
from lightthinker.engine.outputs import CompletionOutput, RequestOutput, ThoughtStats
from lightthinker.testing.records import simulated_output, simulated_stats

THOUGHTS = ["a is three times b so a is 51", "c is a plus b hence 86 in all"]


def stream(*outputs: CompletionOutput) -> Iterator[RequestOutput]:
    for output in outputs:
        yield RequestOutput("r", "prompt", [1], [output], output.finish_reason is not None)


def growing(*, compression: bool = True, tail: str = "</think>\n\n") -> Iterator[RequestOutput]:
    """A request with two thoughts and an answer."""
    return stream(
        simulated_output([], "a is three", compression=compression, finished=False),
        simulated_output(THOUGHTS[:1], "", compression=compression, finished=False),
        simulated_output(THOUGHTS[:1], "c is", compression=compression, finished=False),
        simulated_output(THOUGHTS, "", compression=compression, finished=False),
        simulated_output(THOUGHTS, "The answer is 86.", compression=compression, tail=tail),
    )


def plain_console(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_each_thought_is_one_plain_line() -> None:
    console = plain_console()

    completion = show(growing(), console, hidden=["</think>\n\n"])

    lines = text_of(console).splitlines()
    assert lines[0] == f"[1] {THOUGHTS[0]}  (10 tokens → 4 gists)"
    assert lines[1] == f"[2] {THOUGHTS[1]}  (10 tokens → 4 gists)"
    assert lines[2] == "The answer is 86."
    assert lines[3].startswith("peak 60 KV tokens; full CoT would have held")
    assert "\x1b" not in text_of(console)
    assert completion.finish_reason == "stop"


def test_without_compression_thoughts_are_kept() -> None:
    console = plain_console()

    show(growing(compression=False), console, hidden=["</think>"])

    assert "(10 tokens kept)" in text_of(console)
    assert "gists" not in text_of(console)


@pytest.mark.parametrize("width", [30, 50, 80, 160])
def test_on_a_terminal_thoughts_fold_to_one_line_each(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)

    show(growing(), console, hidden=["</think>"])

    # What remains once the live region has gone.
    screen = final_screen(text_of(console), width)
    folds = [line for line in screen if "▣▣▣▣" in line]
    assert len(folds) == 2
    assert any("The answer is 86." in line for line in screen)
    assert not any("KV live" in line for line in screen)
    assert not any("</think>" in line for line in screen)


def final_screen(written: str, width: int) -> list[str]:
    """A terminal in a few lines: return, newline, cursor up, erase line; the rest is ignored."""
    import re

    lines, row, column = [""], 0, 0
    for code, char in re.findall(r"\x1b\[([?\d;]*[A-Za-z])|(.|\n)", written):
        if code.endswith("A"):
            row -= int(code[:-1] or 1)
        elif code == "2K":
            lines[row] = ""
        elif char == "\r":
            column = 0
        elif char == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif char:
            assert column < width, "a line is wider than the terminal"
            lines[row] = lines[row].ljust(column)[:column] + char + lines[row][column + 1 :]
            column += 1
    return lines


def test_control_characters_never_reach_the_terminal() -> None:
    hostile = "\x1b]0;owned\x07 \x1b[2J \x9b31m [red]markup[/red] [/nope]"
    console = plain_console(400)
    show(
        stream(
            simulated_output([hostile], "", finished=False), simulated_output([hostile], hostile)
        ),
        console,
    )
    line = folded(1, ThoughtStats(hostile, 9, 4, 9), 400, Glyphs())

    for text in (text_of(console), line.plain):
        assert not {"\x1b", "\x07", "\x9b"} & set(text)
        assert "[red]markup[/red]" in text
    assert printable("tab\tnewline\n é 漢") == "tab\tnewline\n é 漢"


def render(renderable: object, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return text_of(console).splitlines()


@pytest.mark.parametrize("width", [24, 40, 63, 64, 100])
@pytest.mark.parametrize("text", ["short", "漢字" * 60, "words and words " * 20])
def test_a_folded_thought_fits_its_line(width: int, text: str) -> None:
    from rich.cells import cell_len

    line = folded(12, ThoughtStats(text, 1234, 9, 1234), width, Glyphs())

    assert cell_len(line.plain) <= width
    assert "1234" in line.plain
    assert ("▣" * 9 if width > 40 else "▣") in line.plain


def test_many_gists_do_not_push_the_text_away() -> None:
    line = folded(1, ThoughtStats("the text", 500, 256, 500), 80, Glyphs())

    assert "the text" in line.plain
    assert "256 gists" in line.plain


@pytest.mark.parametrize("width", [30, 80, 200])
def test_the_meter_shows_live_against_full(width: int) -> None:
    stats, _ = simulated_stats([100, 100], num_prompt=20)

    light, full = render(meter(stats, width, Glyphs()), width)

    assert 0 < light.count("█") < full.count("█")
    assert f"{stats.live_tokens} (−" in light
    assert str(stats.full_cot_tokens) in full
    ratio = light.count("█") / full.count("█")
    # A bar has at least ten cells, so it is right to half a cell in ten.
    assert ratio == pytest.approx(stats.live_tokens / stats.full_cot_tokens, abs=0.1)


def test_the_bar_never_overflows() -> None:
    stats, _ = simulated_stats([4000], compression=False)

    assert all(len(line) <= 60 for line in render(meter(stats, 60, Glyphs()), 60))


def test_costs_name_the_saving() -> None:
    stats, _ = simulated_stats([100, 100], num_prompt=20, num_answer=10)

    # Peak: 20 + 5 + 100 + 5; full chain-of-thought: 20 + 200 + 10.
    assert costs(stats, Glyphs()).startswith(
        "peak 130 KV tokens; full CoT would have held 230 (−43 %). 210 tokens sampled, 2 thoughts"
    )


def test_terminals_without_unicode_get_ascii() -> None:
    line = folded(1, ThoughtStats("text " * 50, 57, 4, 57), 80, ASCII)

    assert line.plain.isascii()
    assert "-> #### 4 gists" in line.plain


def test_the_verdict_names_the_right_answer() -> None:
    right, wrong = plain_console(), plain_console()
    verdict(right, correct=True, reference="86")
    verdict(wrong, correct=False, reference="86")

    assert text_of(right) == "✓ correct\n"
    assert text_of(wrong) == "✗ wrong, expected 86\n"


def test_the_live_region_goes_away_when_the_stream_fails() -> None:
    def failing() -> Iterator[RequestOutput]:
        yield from stream(simulated_output([], "half a thou", finished=False))
        raise KeyboardInterrupt

    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with pytest.raises(KeyboardInterrupt):
        show(failing(), console)

    assert text_of(console).count("\x1b[?25l") == text_of(console).count("\x1b[?25h") == 1
