"""Method names, their options, and budgets matched to LightThinker's."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest

from lightthinker.compression import CompressionConfig
from lightthinker.errors import RequestError
from lightthinker.policies.budget import matched_budget
from lightthinker.policies.methods import (
    POLICIES,
    describe,
    method_names,
    parse_method,
    resolve_method,
    split_methods,
)
from lightthinker.policies.sepllm import separator_ids
from lightthinker.testing.models import byte_tokenizer
from lightthinker.testing.records import simulated_stats


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_found_by_name_with_all_its_settings(name):
    method = resolve_method(f" {name}: budget=300, buffer=20 ")
    assert (method.name, method.compression) == (name, False)
    assert method.policy.name == name
    assert type(method.policy) is POLICIES[name]
    assert method.settings == dataclasses.asdict(method.policy)
    assert (method.settings["budget"], method.settings["buffer"]) == (300, 20)
    assert resolve_method(f"{name}:ratio=0.25").policy.ratio == 0.25
    assert f"\n{name}: " in describe()


@pytest.mark.parametrize("keep_prompt", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_a_budget_below_the_smallest_cache_is_refused_and_its_parts_are_named(name, keep_prompt):
    make = partial(POLICIES[name], keep_prompt=keep_prompt)
    roomy = make(budget=999)
    least = roomy.num_protected + roomy.buffer + 1
    assert make(budget=least).smallest_cache == least
    parts = rf"{roomy.num_protected} protected, buffer {roomy.buffer}, and the next token"
    for budget in (least - 1, 0, -1):
        with pytest.raises(RequestError, match=rf"{name}: budget is {budget}; .*{least} \({parts}"):
            make(budget=budget)


@pytest.mark.parametrize("name", POLICIES)
def test_settings_of_the_wrong_type_are_named(name):
    for settings in ({"budget": 256.5}, {"budget": True}, {"budget": "256"}, {"buffer": 16.5}):
        ((field, value),) = settings.items()
        with pytest.raises(RequestError, match=f"{name}: {field} is {value!r}; .*whole number"):
            POLICIES[name](**{"budget": 256, **settings})
    with pytest.raises(RequestError, match=f"{name}: keep_prompt is 1; it must be true or false"):
        POLICIES[name](budget=256, keep_prompt=1)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("", "give budget .tokens. or ratio; neither is given"),
        ("budget=256,ratio=0.5", "give budget .tokens. or ratio; both are"),
        ("budget=1", "budget is 1; it must be at least"),
        ("ratio=0", "ratio is 0.0; it must be above 0"),
        ("ratio=1.5", "ratio is 1.5"),
        ("budget=256,buffer=0", "buffer is 0; it must be at least"),
        ("budgte=256", "no option 'budgte'.*Did you mean 'budget'"),
        ("budget=many", "budget is 'many'; it must be a whole number"),
        ("ratio=half", "ratio is 'half'; it must be a number"),
        ("budget", "'budget' must be written as option=value"),
        ("budget=9,budget=9", "'budget' is given twice"),
    ],
)
def test_wrong_options_are_named(name, options, named):
    with pytest.raises(RequestError, match=named):
        resolve_method(f"{name}:{options}")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("streaming_llm:budget=64,sinks=-1", "sinks is -1"),
        ("sepllm:budget=64,initial=-1", "initial is -1"),
        ("sepllm:budget=64,neighbour_fraction=0", "neighbour_fraction is 0.0"),
        ("h2o:budget=64,recent_fraction=1.5", "recent_fraction is 1.5"),
        ("snapkv:budget=64,window=0", "window is 0"),
        ("snapkv:budget=64,kernel=4", "kernel is 4; it must be odd"),
        ("snapkv:budget=64,buffer=8", "buffer is 8; it must be at least the window, 16"),
        ("r_kv:budget=64,mix_lambda=2", "mix_lambda is 2.0"),
        ("r_kv:budget=64,threshold=2", "threshold is 2.0"),
        ("r_kv:budget=64,window=20", "buffer is 16; it must be at least the window, 20"),
        ("random:budget=64,recent=-1", "recent is -1"),
    ],
)
def test_settings_out_of_range_are_named(text, named):
    with pytest.raises(RequestError, match=named):
        resolve_method(text)


def test_unknown_methods_get_a_suggestion():
    with pytest.raises(RequestError, match=r"Unknown method 'h20'.*Did you mean 'h2o'"):
        resolve_method("h20:budget=256")
    with pytest.raises(RequestError, match="Did you mean 'lightthinker'"):
        parse_method("lighthinker")


def test_a_list_of_methods_may_hold_options():
    text = "full_cot, h2o:budget=256,recent_fraction=0.25,sepllm:ratio=0.5 ,lightthinker"
    parts = split_methods(text)
    assert parts == [
        "full_cot",
        "h2o:budget=256,recent_fraction=0.25",
        "sepllm:ratio=0.5",
        "lightthinker",
    ]
    assert resolve_method(parts[1]).policy.recent_fraction == 0.25
    assert split_methods("") == []


def test_compression_methods_are_settings_of_the_checkpoint():
    saved = CompressionConfig(num_gists=3)
    assert resolve_method("full_cot").compression is False
    assert resolve_method("full_cot").policy is None
    assert resolve_method("lightthinker").compression_config(saved) == saved
    assert resolve_method("lightthinker_thought").compression_config(saved) == saved
    retention = resolve_method("retention:retain_thoughts=3")
    assert retention.settings == {"retain_thoughts": 3}
    assert retention.compression_config(saved) == dataclasses.replace(saved, retain_thoughts=3)
    blanked = resolve_method("gists_blanked").compression_config(saved)
    assert blanked == dataclasses.replace(saved, blank_gists=True)
    assert {"full_cot", "lightthinker", "anllm", "retention", *POLICIES} <= set(method_names())


@pytest.mark.parametrize("name", ["lightthinker", "anllm", "lightthinker_token", "retention"])
def test_a_checkpoint_that_was_not_trained_for_a_method_is_refused(name):
    with pytest.raises(RequestError, match="needs a checkpoint trained"):
        resolve_method(name).compression_config(None)
    if name in ("anllm", "lightthinker_token"):
        with pytest.raises(RequestError, match="trained with 'thought'"):
            resolve_method(name).compression_config(CompressionConfig())


def test_budgets_match_lightthinkers_measured_memory():
    runs = [simulated_stats(lengths)[0] for lengths in ([30, 30], [60, 20, 10])]
    peaks = [stats.peak_tokens for stats in runs]
    means = [stats.mean_live_tokens for stats in runs]
    assert matched_budget(runs) == matched_budget(runs, "peak") == round(sum(peaks) / 2)
    assert matched_budget(runs, "mean") == round(sum(means) / 2) < matched_budget(runs)
    with pytest.raises(RequestError, match="no samples"):
        matched_budget([])
    with pytest.raises(RequestError, match="median"):
        matched_budget(runs, "median")


def test_separators_are_punctuation_and_newlines_of_the_tokenizer():
    tokenizer = byte_tokenizer()
    found = {tokenizer.decode([i]) for i in separator_ids(tokenizer, ".,?!;:\n")}
    assert found == set(".,?!;:\n")
