"""Values of the wrong type are named before anything is done with them."""

from __future__ import annotations

import re

import pytest

from lightthinker.compression import CompressionConfig
from lightthinker.errors import ConfigError
from lightthinker.train.recipe import load_recipe

RECIPE = """
output_dir: {folder}/run
model: {{path: {folder}}}
compression: {{num_gists: 2}}
data: {{tasks: {{difficulty: tiny}}}}
trainer: {{max_steps: 3}}
"""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(folder=tmp_path))
    return file


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "compression.num_gists=none",
            "compression.num_gists is 'none'; it must be a whole",
        ),
        ("compression.see_current=maybe", "compression.see_current is 'maybe'; it must be true or"),
        ("data.row_length=abc", "data.row_length is 'abc'; it must be a whole number"),
        ("data.row_length=2.5", "data.row_length is 2.5; it must be a whole number"),
        ("data.full_cot_share=x", "data.full_cot_share is 'x'; it must be a number"),
        ("trainer.learning_rate=abc", "trainer.learning_rate is 'abc'; it must be a number"),
        ("trainer.max_steps=abc", "trainer.max_steps is 'abc'; it must be a whole number"),
        ("model.compile=often", "model.compile is 'often'; it must be true or false"),
    ],
)
def test_wrong_types_in_a_recipe_are_named(recipe, override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_recipe(recipe, [override])


def test_right_types_pass(recipe):
    loaded = load_recipe(
        recipe, ["data.full_cot_share=1", "trainer.learning_rate=1e-5", "trainer.save_strategy=no"]
    )
    assert loaded.data.full_cot_share == 1


def test_settings_saved_in_a_checkpoint_are_checked_too():
    with pytest.raises(ConfigError, match="num_gists is '9'; it must be a whole number"):
        CompressionConfig.from_dict({"num_gists": "9"})
