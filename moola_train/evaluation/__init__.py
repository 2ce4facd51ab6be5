"""What a run is worth on windows that it never saw: metrics, floors, intervals, controls."""
