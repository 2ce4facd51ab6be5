"""Naive twins: every definition of the features as a plain loop, slow and easy to check by eye.

They are written from the definitions, use numpy alone and import nothing of the packages that
they are compared with. All of them work in float64 and sum a look-back from its oldest bar on.
"""

from tests.reference.relativity import relativity
from tests.reference.returns import returns
from tests.reference.table import features, segments, swings, valid, valid_window_starts
from tests.reference.zigzag import Swing, zigzag

__all__ = [
    "Swing",
    "features",
    "relativity",
    "returns",
    "segments",
    "swings",
    "valid",
    "valid_window_starts",
    "zigzag",
]
