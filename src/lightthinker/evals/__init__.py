"""Evaluation: graders, statistics, benchmarks and the tables they end in."""
