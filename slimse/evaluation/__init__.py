"""Scores of noisy and enhanced speech against clean speech."""

from .evaluate import Pair, evaluate_pairs, find_pairs, read_pair
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
    "Pair",
    "Report",
    "check_metrics",
    "evaluate_pairs",
    "find_pairs",
    "interval",
    "read_pair",
    "score",
]
