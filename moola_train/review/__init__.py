"""Marking windows by hand, on a page of one's own browser that a small server on loopback serves.

``marks`` says what an answer is, ``record`` keeps answers in a labels file, ``remembered`` what the
file's metadata holds, ``candidates`` which windows are asked for and in what order, ``pictures``
what a window looks like, ``session`` who is asked what, and ``server`` speaks to the pages.
"""
