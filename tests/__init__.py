"""Tests of moola; a package, so that tests and benchmarks share the naive twins."""
