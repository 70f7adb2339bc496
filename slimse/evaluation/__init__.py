"""Scores of noisy and enhanced speech against clean speech."""

from .evaluate import FileScores, MeanScores, Report, evaluate_pairs, find_pairs
from .metrics import METRICS, Metric, check_metrics, score

__all__ = [
    "METRICS",
    "FileScores",
    "MeanScores",
    "Metric",
    "Report",
    "check_metrics",
    "evaluate_pairs",
    "find_pairs",
    "score",
]
