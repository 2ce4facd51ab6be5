"""Measurements: plain quick tests in `make test`, and the tables of `make bench`."""
