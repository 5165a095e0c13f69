"""A wake-up: pollable from any descriptor number, and gone with its last reference."""

import fcntl
import os
import threading

import pytest

from common.process import Stop
from common.wake import Wake


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_its_descriptor_is_closed_with_the_last_reference() -> None:
    wake, stop = Wake(), Stop()
    descriptors = [wake.fileno(), stop.fileno()]
    assert all(map(is_open, descriptors))
    del wake, stop
    assert not any(map(is_open, descriptors))


def test_it_wakes_until_it_is_cleared() -> None:
    wake = Wake()
    wake.set()
    wake.set()
    wake.wait(None)
    wake.clear()
    wake.clear()  # nobody has woken him
    threading.Timer(0.05, wake.set).start()
    wake.wait(20.0)


def test_a_process_with_more_descriptors_than_select_takes_can_wait_for_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = os.eventfd(0)
    high = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, 1024)
    os.close(made)
    monkeypatch.setattr(os, "eventfd", lambda *_: high)
    stop = Stop()
    assert stop.fileno() >= 1024
    assert not stop.wait(0.01)
    threading.Timer(0.05, stop.set).start()
    assert stop.wait(20.0)
