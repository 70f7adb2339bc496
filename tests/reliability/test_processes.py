"""Worker processes when a signal comes at a bad moment."""

import multiprocessing
import signal

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
