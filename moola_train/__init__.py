"""A thin training layer: windows of a feature store, streamed into a small BiLSTM."""

import os

# Threads that spin while they wait take the cores from those that work: on two busy cores a small
# fit took 29 s instead of 4. OpenMP reads this once, when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# On an Intel processor MKL picks its code by where arrays happen to lie in memory, so that the same
# seed gave other bits; STRICT forbids that. It reads this at its first call.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
