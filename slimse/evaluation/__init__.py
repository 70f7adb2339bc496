"""Scores of noisy and enhanced speech against clean speech."""

from .evaluate import Dynamic, FileScores, MeanScores, Report, evaluate_pairs, find_pairs
from .metrics import METRICS, Metric, check_metrics, score

__all__ = [
    "METRICS",
    "Dynamic",
    "FileScores",
    "MeanScores",
    "Metric",
    "Report",
    "check_metrics",
    "evaluate_pairs",
    "find_pairs",
    "score",
]
