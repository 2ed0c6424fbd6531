"""Where a task's handler runs, and what becomes of a job whose process dies: the options, checked where they are given."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

import pgqueue
from pgqueue.error_text import ErrorText
from pgqueue.errors import ConfigurationError, InvalidOption, ProcessDied
from pgqueue.job import ClaimedJob
from pgqueue.retry import Fixed
from pgqueue.task import Task
from pgqueue.worker import frames
from pgqueue.worker.board import Board
from pgqueue.worker.decide import (
    CANCELLED,
    COMPLETED,
    RELEASED,
    Completed,
    Ending,
    Failed,
    Snoozed,
    died,
    is_suspect,
)
from pgqueue.worker.dying import how_it_ended


def sync() -> None: ...


async def asynchronous() -> None: ...


def task_of(function: Any, **options: Any) -> Task[..., Any]:
    return Task(function, **options)


def claimed(**fields: Any) -> ClaimedJob:
    job = ClaimedJob(7, -(2**63), "default", 11, 1, "sync", "{}", 1, 2, 0, None)
    return job._replace(**fields)


@pytest.mark.parametrize(
    ("function", "given", "executor"),
    [
        (sync, None, "thread"),
        (sync, "thread", "thread"),
        (sync, "process", "process"),
        (asynchronous, None, "async"),
        (asynchronous, "async", "async"),
    ],
)
def test_a_function_runs_where_its_kind_can(function: Any, given: Any, executor: str) -> None:
    assert task_of(function, executor=given).executor == executor


@pytest.mark.parametrize(
    ("function", "options", "told"),
    [
        (asynchronous, {"executor": "process"}, "an async function runs in the event loop"),
        (asynchronous, {"executor": "thread"}, "an async function runs in the event loop"),
        (sync, {"executor": "async"}, "this one is sync"),
        (sync, {"executor": "fork"}, "has to be 'process' or 'thread', got 'fork'"),
        (sync, {"executor": True}, "has to be 'process' or 'thread', got True"),
        (sync, {"max_memory": "1GB"}, "are for executor='process'"),
        (sync, {"executor": "thread", "max_jobs_per_child": 3}, "are for executor='process'"),
    ],
)
def test_a_function_that_cannot_run_there_is_refused(
    function: Any, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"task {function.__name__}: .*{told}"):
        task_of(function, **options)


def test_a_batch_has_no_process() -> None:
    app = pgqueue.App()
    with pytest.raises(ConfigurationError, match="one job at a time"):

        @app.batch_task(size=3, executor="process")
        def index(jobs: list[pgqueue.BatchJob[int]]) -> None: ...


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (1, 1),
        (512 << 20, 512 << 20),
        ("512MB", 512 << 20),
        ("512 MiB", 512 << 20),
        ("1.5gb", 3 << 29),
        ("64kb", 64 << 10),
        (" 4096 ", 4096),
        ("4096B", 4096),
    ],
)
def test_memory_is_written_as_people_write_it(given: Any, taken: int) -> None:
    assert task_of(sync, executor="process", max_memory=given).max_memory == taken


@pytest.mark.parametrize(
    "given", [0, -1, True, 1.5, "", "lots", "512TB", "-1MB", "1e9", "512M B", 1 << 60, "0MB"]
)
def test_what_is_no_memory_is_refused_by_name(given: Any) -> None:
    with pytest.raises(InvalidOption, match="max_memory: expected bytes or text such as '512MB'"):
        task_of(sync, executor="process", max_memory=given)


@pytest.mark.parametrize("given", [0, -1, True, "3", 2.0])
def test_what_is_no_count_of_jobs_is_refused_by_name(given: Any) -> None:
    with pytest.raises(InvalidOption, match="max_jobs_per_child: expected an integer of at least 1"):
        task_of(sync, executor="process", max_jobs_per_child=given)


def test_on_crash_goes_with_every_job_for_the_database_decides_on_it() -> None:
    plain, guarded = task_of(sync), task_of(asynchronous, on_crash="dead")
    assert plain.on_crash == "retry"
    assert "options" not in json.loads(plain.item().json)
    assert json.loads(guarded.item().json)["options"] == {"on_crash": "dead"}
    tagged = json.loads(guarded.using(tags=["a"]).item().json)["options"]
    assert tagged == {"tags": ["a"], "on_crash": "dead"}
    with pytest.raises(InvalidOption, match="on_crash: expected 'retry' or 'dead', got 'explode'"):
        task_of(sync, on_crash="explode")


# Endings ----------------------------------------------------------------------------------------------


def test_a_death_is_a_failure_until_the_attempts_are_used_up() -> None:
    task = task_of(sync, executor="process", retry=Fixed(3, attempts=2))
    error = ProcessDied("the process was killed by SIGSEGV", trace="Fatal Python error")
    first, last = died(claimed(attempt=1), task, error), died(claimed(attempt=2), task, error)
    assert (first.delay, last.delay, last.reason) == (3, None, "crashed")
    assert first.error.type == "pgqueue.ProcessDied"
    assert (first.error.message, first.error.traceback) == (str(error), "Fatal Python error")
    assert first.error.fingerprint == last.error.fingerprint


def test_what_the_task_says_of_a_death_holds() -> None:
    error = ProcessDied("the process ended with exit code 3")
    once = died(claimed(), task_of(sync, on_crash="dead"), error)
    assert (once.delay, once.reason) == (None, "crashed")
    permanent = died(claimed(), task_of(sync, permanent=ProcessDied), error)
    assert (permanent.delay, permanent.reason) == (None, "permanent")


def test_a_suspect_has_crashed_more_than_once() -> None:
    plain, apart = task_of(sync), task_of(sync, executor="process")
    assert [is_suspect(claimed(crashes=crashes), plain) for crashes in range(4)] == [False, False, True, True]
    assert not is_suspect(claimed(crashes=3), apart), "it runs apart anyway"


@pytest.mark.parametrize(
    "ending",
    [
        COMPLETED,
        Completed('{"a": "ü"}'),
        Completed(reason="too large"),
        Failed(ErrorText("ValueError", "no \\x00", "Traceback", "f"), 1.5),
        Failed(ErrorText("ValueError", "", "", ""), None, "permanent"),
        Snoozed(0.25),
        RELEASED,
        CANCELLED,
        None,
    ],
    ids=lambda ending: type(ending).__name__,
)
def test_every_ending_comes_over_as_it_is(ending: Ending | None) -> None:
    sent = frames.frame(frames.ended(ending, has_completed=False, was_stopped=False, leaves=""))
    assert frames.length(sent[: frames.HEADER]) == len(sent) - frames.HEADER
    word = frames.read_word(sent[frames.HEADER :])
    assert isinstance(word, frames.Ended)
    came = frames.ending_of(word)
    assert came == ending
    assert (came is COMPLETED) == (ending is COMPLETED), "slots know it by its identity"


def test_a_job_comes_over_as_it_is() -> None:
    job = claimed(args='{"n": 9007199254740993}', options='{"tags": ["ü"]}')
    order = frames.read_order(frames.frame(frames.Run(job))[frames.HEADER :])
    assert isinstance(order, frames.Run)
    assert order.job == job
    assert type(order.job) is ClaimedJob


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0, "ended with exit code 0"),
        (78, "ended with exit code 78"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (-40, "was killed by signal 40"),
    ],
)
def test_how_a_process_ended_is_said_in_words(code: int, told: str) -> None:
    assert how_it_ended(code) == told


def test_the_board_tells_what_ran_in_the_child_from_what_ran_apart() -> None:
    board = Board.create(4)
    other = Board(os.dup(board.fd), 4)
    board.cells[0], board.cells[1] = 7, -8
    board.deadlines[0] = board.deadlines[1] = 1_000
    assert (other.started(), other.apart()) == ([7], [8])
    assert other.overdue(999) == []
    assert other.overdue(1_000) == [7]
    assert other.overdue(10_000_000_000) == [7, -8], "a process that is to be killed has its grace first"
    assert not other.has_left
    board.leave()
    assert other.has_left
    board.close()
    other.close()
