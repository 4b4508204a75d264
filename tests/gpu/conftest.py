"""Each test begins with what a new process would find."""

from __future__ import annotations

import gc

import pytest
import torch


@pytest.fixture(autouse=True)
def nothing_left_of_other_tests():
    """Free the engines of tests before this one, and forget what was compiled for their models.

    Dynamo compiles one function for at most a few models of different structure.
    """
    gc.collect()
    torch._dynamo.reset()
