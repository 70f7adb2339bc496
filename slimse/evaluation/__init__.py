"""Scores of noisy and enhanced speech against clean speech."""

from .evaluate import evaluate_pairs, find_pairs
from .intervals import Interval, interval
from .metrics import DEFAULT_METRICS, METRICS, Metric, check_metrics, score
from .results import Dynamic, FileScores, MeanScores, Report

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "Dynamic",
    "FileScores",
    "Interval",
    "MeanScores",
    "Metric",
    "Report",
    "check_metrics",
    "evaluate_pairs",
    "find_pairs",
    "interval",
    "score",
]
