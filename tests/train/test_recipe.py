"""Recipes: every shipped one parses; what is wrong is named, with a suggestion."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightthinker.errors import ConfigError
from lightthinker.train.recipe import load_recipe, recipe_from_dict
from lightthinker.train.run import training_arguments

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))

MINIMAL = {"output_dir": "out", "model": {"path": "m"}, "data": {"sources": [{"path": "d.jsonl"}]}}


def write(tmp_path, settings):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.stem)
def test_every_shipped_recipe_parses_and_survives_the_round_trip(file):
    recipe = load_recipe(file)
    assert recipe_from_dict(recipe.to_dict()) == recipe
    arguments = training_arguments(recipe)
    assert arguments.learning_rate == recipe.trainer["learning_rate"]


def test_there_are_recipes():
    assert len(RECIPES) == 23


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": {"lerning_rate": 1}}, "trainer.lerning_rate.*'learning_rate'"),
        ({"trainer": {"output_dir": "x"}}, "trainer.output_dir is set by the recipe"),
        ({"compression": {"num_gist": 1}}, "compression.num_gist.*'num_gists'"),
        ({"modle": {}}, "modle.*'model'"),
        ({"model": {"path": "m", "config": {"model_type": "llama"}}}, "exactly one of model.path"),
        ({"model": {"config": {"hidden_size": 4}, "tokenizer": "tasks"}}, "model_type"),
        ({"model": {"config": {"model_type": "llama"}}}, "model.tokenizer"),
        ({"data": {}}, "exactly one of data.sources"),
        ({"data": {"tasks": {"difficulti": "x"}}}, "data.tasks.difficulti.*'difficulty'"),
        ({"data": {"tasks": {}, "full_cot_share": 2}}, "full_cot_share is 2"),
        ({"data": {"tasks": {}, "row_length": 1}}, "row_length is 1"),
        ({"data": {"tasks": {}, "segment": {"by": "paragrap"}}}, "paragraph"),
        ({"data": {"tasks": {"families": {"program": 1}}}}, "'program'.*'programs'"),
        ({"data": {"tasks": {"difficulty": "standart"}}}, "standard"),
        ({"data": {"tasks": {"difficulty": {"16k": 1}}}}, "'16k'.*8k"),
        ({"data": {"tasks": {"difficulty": {"4k": 0}}}}, "difficulty.4k is 0"),
        ({"data": {"tasks": {"difficulty": {"8k": 1}}}}, "none of what word_problems knows"),
        ({"data": {"tasks": {"difficulty": ["4k"]}}}, "map names to weights"),
        ({"model": {"path": "m", "max_position_embeddings": 0}}, "max_position_embeddings is 0"),
        ({"data": {"sources": {"path": "x"}}}, "must be a list"),
        ({"data": None}, "exactly one of data.sources"),
        ({"trainer": 5}, "trainer must be a mapping"),
        ({"save": {"dtype": "int3"}}, "save.dtype is 'int3'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, {**MINIMAL, **change}))


def test_unreadable_recipes(tmp_path):
    with pytest.raises(ConfigError, match="Cannot read recipe"):
        load_recipe(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_recipe(bad)
    bad.write_text("just text")
    with pytest.raises(ConfigError, match="mapping"):
        load_recipe(bad)
    with pytest.raises(ConfigError, match="lacks data"):
        load_recipe(write(tmp_path, {"output_dir": "o", "model": {"path": "m"}}))


def test_overrides_reach_every_level_and_know_scientific_numbers(tmp_path):
    file = write(tmp_path, MINIMAL)
    recipe = load_recipe(
        file, ["trainer.learning_rate=1e-5", "compression.num_gists=3", "data.row_length=99"]
    )
    assert recipe.trainer["learning_rate"] == 1e-5
    assert recipe.compression.num_gists == 3
    assert recipe.data.row_length == 99
    with pytest.raises(ConfigError, match="must look like"):
        load_recipe(file, ["trainer.seed"])
    with pytest.raises(ConfigError, match="not a section"):
        load_recipe(file, ["output_dir.x=1"])


def test_overrides_reach_items_of_lists_by_number(tmp_path):
    sources = [{"path": "a.jsonl"}, {"path": "b.jsonl", "limit": 3}]
    file = write(tmp_path, {**MINIMAL, "data": {"sources": sources, "retain_thoughts": [0, 1]}})
    changes = ["data.sources.1.path=c.jsonl", "data.sources.0.limit=7", "data.retain_thoughts.1=4"]
    data = load_recipe(file, changes).data
    assert [(s.path, s.limit) for s in data.sources] == [("a.jsonl", 7), ("c.jsonl", 3)]
    assert data.retain_thoughts == (0, 4)
    assert load_recipe(file, ["data.sources.0={path: d.jsonl}"]).data.sources[0].path == "d.jsonl"
    for override, message in (
        ("data.sources.2.path=x", r"no item 2; the list data.sources has 2 \(0 to 1\)"),
        ("data.sources.2={path: x}", "no item 2"),
        ("data.sources.first.path=x", r"data.sources is a list.*data\.sources\.0"),
        ("data.sources.-1.path=x", "data.sources is a list"),
        ("data.sources.0.path.x=1", "data.sources.0.path is not a section"),
        ("data.sources=[1", "not valid YAML"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_recipe(file, [override])


def test_wrong_trainer_values_are_config_errors(tmp_path):
    recipe = load_recipe(write(tmp_path, {**MINIMAL, "trainer": {"lr_scheduler_type": "cosin"}}))
    with pytest.raises(ConfigError, match="cosin"):
        training_arguments(recipe)
