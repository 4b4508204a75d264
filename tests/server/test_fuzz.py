"""schemathesis over our own OpenAPI: whatever is sent, no answer is a 5xx.

The full form (5,000 cases and more) is benchmarks/serve_robustness.py.
"""

from __future__ import annotations

from lightthinker.testing.fuzz import fuzz


def test_no_request_makes_the_server_fail(server):
    result = fuzz(server.url, max_cases=200)

    assert result.cases >= 200
    assert result.server_errors == []
    assert result.statuses[200] > 0
    assert result.statuses[400] > 0
    assert {"/v1/chat/completions", "/v1/completions", "/tokenize"} <= result.paths
    assert server.wait_until_idle()
    assert server.engine.stats().num_pages_used == 0
