"""Worker processes that end with the process that started them, whatever ended that."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

_GRACE = 5.0
"""Seconds that a worker gets to clean up before it is ended."""


class _Worker:
    """What a worker process knows of itself."""

    busy = False
    stopping = False


@contextmanager
def worker_pool(workers: int, start: Callable[..., object], *arguments: Any) -> Iterator[Callable[..., Future[Any]]]:
    """Start processes, and give a function that hands them calls: ``submit(function, *arguments)``.

    They are spawned: a fork of a process whose torch has run threads can hang. Where the ``with`` statement ends by an
    exception, calls that run are interrupted by a `KeyboardInterrupt`, so that they clean up, and the rest is dropped;
    a second Ctrl-C ends the workers at once. The same happens in each of them when this process is gone.

    Args:
        workers: number of processes.
        start: run once in each of them, before the first call.
        arguments: of ``start``.

    """
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _start, (stop, start, arguments))

    def submit(function: Callable[..., Any], *args: Any) -> Future[Any]:
        with _signals_held():
            return pool.submit(_call, function, *args)

    try:
        yield submit
    except BaseException:
        stop.set()
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
            raise
        raise
    pool.shutdown(wait=True)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let signals wait: an exception in the middle of a process's start leaves a process that nobody knows."""
    held: list[int] = []
    usual = {}
    if threading.current_thread() is threading.main_thread():
        for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):
            number = getattr(signal, name)
            # What is ignored or at its default raises nothing.
            if callable(handler := signal.getsignal(number)):
                usual[number] = handler
                signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def end_with_parent(stop: Any = None) -> None:
    """Let this process end when its parent does, or when the event ``stop`` is set.

    The call that runs is interrupted first, see `worker_pool`; a process that runs none of these ends at once.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    threading.Thread(target=_watch, args=(parent.sentinel, stop), daemon=True).start()


def _watch(sentinel: int, stop: Any) -> None:
    while not wait([sentinel], timeout=0.2) and not (stop is not None and stop.is_set()):
        pass
    _Worker.stopping = True
    if _Worker.busy and hasattr(signal, "pthread_kill"):
        # To the main thread, which may be waiting inside a system call.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        threading.Event().wait(_GRACE)
    os._exit(1)


def _start(stop: Any, start: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    # A terminal sends Ctrl-C to all processes: the parent gets it too, and tells the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    end_with_parent(stop)
    start(*arguments)


def _interrupt(*_: object) -> None:
    # Another signal must not interrupt the cleaning up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _call(function: Callable[..., Any], *args: Any) -> Any:
    _Worker.busy = True
    try:
        return function(*args)
    finally:
        _Worker.busy = False
        if _Worker.stopping:
            os._exit(1)
