"""Object stores: bars from there, universes to there, and chunks of them kept at hand."""
