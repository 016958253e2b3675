"""Benchmarks: the engine beside other ways to write the same mechanism, measured in one run."""
