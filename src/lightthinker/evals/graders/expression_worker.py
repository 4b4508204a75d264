"""The program of one math-verify process: requests come in on stdin, verdicts go out on stdout.

Run as a file, not as a module of the package, so that it needs math-verify and nothing else, and
starts from any program, with a `__main__` guard or without. math-verify's own time limits use
SIGALRM and so want a main thread, which this process has. Memory is limited, because
`9**9**9` is a number.
"""

from __future__ import annotations

import json
import os
import resource
import sys

MEMORY_LIMIT = 4 * 2**30
"""Bytes of address space."""


def main() -> None:
    """Answer requests until stdin ends."""
    limit_s = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, resource.RLIM_INFINITY))
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from math_verify import parse, verify

    def judge(reference: str, answer: str) -> dict[str, object]:
        gold = parse(f"\\boxed{{{reference}}}", parsing_timeout=limit_s)
        found = parse(answer, parsing_timeout=limit_s)
        # The last item is the text that was parsed, the others are expressions.
        shown = found[-1] if found and isinstance(found[-1], str) else None
        return {"correct": verify(gold, found, timeout_seconds=limit_s), "found": shown}

    judge("1", "1")
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            verdict = judge(request["reference"], request["answer"])
        except (Exception, RecursionError, MemoryError):
            verdict = {"correct": False, "found": None}
        print(json.dumps(verdict), file=replies, flush=True)


if __name__ == "__main__":
    main()
