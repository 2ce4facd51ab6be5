"""Builds on many machines: whole instruments, or chunk ranges of one, are tasks for Dask."""
