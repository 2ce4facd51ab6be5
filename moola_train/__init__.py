"""A thin training layer: windows of a feature store, streamed into a small BiLSTM."""

import os

# Threads that spin while they wait take the cores from those that work: on two busy cores an LSTM
# trains at a tenth of its speed. OpenMP reads this once, when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
