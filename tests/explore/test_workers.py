"""Where trials run: here in turn, or in processes, of which one can be killed."""

import os

import pytest

from edgeopt.errors import EdgeoptError
from edgeopt.explore.workers import workers


def test_workers_call_at_once_and_here_when_there_is_one_job() -> None:
    with workers(1) as pool:
        assert pool.submit(os.getpid).result() == os.getpid()


def test_workers_let_waiting_threads_sleep_when_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with workers(2) as pool:
        assert pool.submit(os.getenv, "OMP_WAIT_POLICY").result() == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # what the user says counts
    with workers(2) as pool:
        assert pool.submit(os.getenv, "OMP_WAIT_POLICY").result() == "ACTIVE"


def test_workers_say_that_one_was_killed_when_its_process_ends() -> None:
    with pytest.raises(EdgeoptError, match=r"(?s)was killed.*fewer --jobs"), workers(2) as pool:
        pool.submit(os._exit, 9).result()
