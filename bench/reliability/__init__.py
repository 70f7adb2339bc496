"""Long trials: soak, kills, load and fuzzing."""
