"""Measurements: times, work, quality and reliability. Run them from the repository, as ``python -m bench.NAME``."""
