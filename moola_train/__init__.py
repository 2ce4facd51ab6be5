"""A thin training layer: windows of a feature store, streamed into a small BiLSTM."""
