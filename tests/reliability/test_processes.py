"""Worker processes when a signal comes at a bad moment."""

import multiprocessing
import signal
import sys

import pytest

from slimse.processes import worker_pool


def nothing():
    """Start, or be called."""


def test_a_signal_while_a_worker_starts_leaves_no_worker_behind(monkeypatch):
    start = multiprocessing.process.BaseProcess.start

    def interrupted(process):
        start(process)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), worker_pool(1, nothing) as submit:
            submit(nothing)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not multiprocessing.active_children()


def test_a_data_worker_is_silent_where_the_training_has_gone(monkeypatch, capsys):
    data = pytest.importorskip("slimse.training.data", reason="needs slimse[train]")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    data._start_worker(0)
    for error in (BrokenPipeError(32, "Broken pipe"), EOFError()):
        sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err == ""
    sys.excepthook(ValueError, ValueError("a fault of the worker"), None)
    assert "a fault of the worker" in capsys.readouterr().err
