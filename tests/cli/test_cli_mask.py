"""Drawn masks show what the layout says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightthinker.cli.app import main
from lightthinker.cli.mask_drawing import HIDDEN, LETTERS, draw_text, example_layout, groups
from lightthinker.layout import LayoutRules, Role

RULES = [
    LayoutRules(num_gists=2),
    LayoutRules(num_gists=3, tokens_per_gist=2, retain_thoughts=1),
    LayoutRules(num_gists=2, bi_directional=True, see_current=True),
    LayoutRules(num_gists=2, diagonal=True, prompt_chunk_tokens=3),
    LayoutRules(method="token", num_gists=2, segment_tokens=3),
    LayoutRules(method="anllm", num_gists=1),
    LayoutRules(method="full"),
]


@given(
    rules=st.sampled_from(RULES),
    prompt=st.integers(1, 7),
    thoughts=st.lists(st.integers(1, 6), min_size=0, max_size=4),
    answer=st.integers(0, 3),
)
def test_every_cell_is_drawn_as_the_layout_says(
    rules: LayoutRules, prompt: int, thoughts: list[int], answer: int
) -> None:
    layout = example_layout(rules, prompt=prompt, thoughts=thoughts, answer=answer)
    n = len(layout)

    lines = draw_text(layout).plain.splitlines()
    begin = len(lines[0]) - len(lines[0].lstrip()) - 1
    letters = np.array([LETTERS[Role(role)] for role in layout.role])
    visible = layout.visible()

    assert lines[0][begin + 1 : begin + 2 * n : 2] == "".join(letters)
    for query in range(n):
        cells = lines[1 + query][begin + 1 : begin + 2 * n : 2]
        hidden = [HIDDEN if key <= query else " " for key in range(n)]
        assert cells == "".join(np.where(visible[query], letters, hidden))
        assert int(lines[1 + query].split()[-1]) == layout.live_tokens()[query]
    assert f"peak {layout.peak_tokens()} live tokens" in lines[-1]


def test_groups_are_named_and_cover_the_document() -> None:
    layout = example_layout(LayoutRules(num_gists=2), prompt=3, thoughts=[4, 2], answer=1)

    found = groups(layout)

    assert [name for name, _, _ in found] == [
        "prompt", "thought 1", "trigger", "gists 1", "continue",
        "thought 2", "trigger", "gists 2", "continue", "answer",
    ]  # fmt: skip
    assert [end for _, _, end in found[:-1]] == [begin for _, begin, _ in found[1:]]
    assert (found[0][1], found[-1][2]) == (0, len(layout))


def test_the_command_prints_the_mask(capsys: pytest.CaptureFixture[str]) -> None:
    main(["mask", "--prompt", "2", "--thoughts", "2", "--answer", "1", "--num-gists", "1"])

    assert " continue  p p · · · g o " in capsys.readouterr().out


def test_rules_that_let_more_expire(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompt", "2", "--thoughts", "2,1", "--answer", "1", "--num-gists", "1"]
    for flags, last_row in (
        ([], "   answer  p p · · · g o · · g o a "),
        (["--drop-continue"], "   answer  p p · · · g · · · g o a "),
        (["--blank-gists"], "   answer  p p · · · · o · · · o a "),
    ):
        main(["mask", *sizes, *flags])
        assert last_row in capsys.readouterr().out


def test_the_command_draws_a_file_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "mask.png"

    main(["mask", "--output", str(target), "--thoughts", "3"])
    assert target.read_bytes().startswith(b"\x89PNG")
    for bad in (target, tmp_path / "mask.unknown"):
        with pytest.raises(SystemExit) as ended:
            main(["mask", "--output", str(bad)])
        assert ended.value.code == 2
    assert "exists" in capsys.readouterr().err


def test_the_figure_colours_what_is_seen(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from lightthinker.cli.mask_drawing import _pixels

    layout = example_layout(LayoutRules(num_gists=2), prompt=3, thoughts=[4], answer=2)
    pixels = _pixels(layout)
    white = (pixels == 1).all(axis=2)
    hidden = ~layout.visible() & np.tri(len(layout), dtype=bool)

    assert (white == ~np.tri(len(layout), dtype=bool)).all()
    assert len(np.unique(pixels[hidden], axis=0)) == 1
    assert len(np.unique(pixels[layout.visible()], axis=0)) == len(np.unique(layout.role))
