"""An engine in a process of its own answers as one here does; this process opens no CUDA."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from lightthinker import LLM, SamplingParams
from lightthinker.bundled import bundled_model_path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

SETTINGS = {"dtype": "float32", "num_kv_tokens": 32_768, "max_num_seqs": 16}
PROMPT = [5, 9, 30, 7]
SCRIPT = f"""
import json, torch
from lightthinker import LLM, SamplingParams
llm = LLM({str(bundled_model_path())!r}, engine_process=True, **{SETTINGS!r})
outputs = llm.generate({PROMPT!r}, SamplingParams(max_tokens=200, ignore_eos=True))
print(json.dumps([outputs[0].outputs[0].token_ids, torch.cuda.is_initialized()]))
llm.shutdown()
"""


def test_the_asking_process_opens_no_cuda_context():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stderr
    token_ids, is_initialized = json.loads(done.stdout.splitlines()[-1])
    assert not is_initialized
    llm = LLM(bundled_model_path(), **SETTINGS)
    (here,) = llm.generate(PROMPT, SamplingParams(max_tokens=200, ignore_eos=True))
    llm.shutdown()
    assert token_ids == here.outputs[0].token_ids
