"""The bundled model, served: it says over HTTP what it says in Python, and its thoughts fold."""

from __future__ import annotations

from openai import OpenAI

from lightthinker import LLM, SamplingParams
from lightthinker.evals.benchmarks import load_benchmark
from lightthinker.testing.serving import running_server


def test_the_bundled_model_answers_as_it_does_in_python():
    llm = LLM("demo", num_kv_tokens=4096)
    problem = load_benchmark("tasks", num_problems=4, seed=0, difficulty="demo")[0]
    messages = [dict(m) for m in problem.messages]
    expected = llm.chat(messages, SamplingParams(max_tokens=400))[0].outputs[0]
    with running_server(llm) as running, OpenAI(base_url=f"{running.url}/v1", api_key="x") as api:
        answer = api.chat.completions.create(
            model="lightthinker", messages=messages, max_tokens=400
        )
    message, end = answer.choices[0].message, llm.compression.reasoning_end
    reasoning, found, content = expected.text.partition(end)

    assert found, "the model ends its reasoning"
    assert message.reasoning_content == reasoning.rstrip()
    assert message.content == content
    assert problem.grade(message.content) == problem.grade(expected.text)
    costs = answer.usage.lightthinker
    assert costs["kv_tokens_freed"] == expected.stats.tokens_freed > 0
    assert costs["peak_tokens"] == expected.stats.peak_tokens < costs["full_cot_peak_tokens"]
    assert costs["dependency"] == expected.stats.dep_paper
    assert costs["thoughts"] == len(expected.thoughts)
