"""Benchmarks: what is measured, and beside which floor and aim it stands. See docs/performance.md."""
