"""The checker finds what it is there for: evidence of each broken promise, made by hand. And the table is that of the suite."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.checker import Evidence, JobRow, findings, runs_again
from tests.faults.conftest import Collected, all_fault_names, told_as
from tests.faults.load import Record
from tests.faults.report import PAGE, Report, rewritten, rows_of, table

PLAIN, PAYS, STUMBLES, RECEIPT = 1, 2, 3, 4


def whole() -> Evidence:
    """One transaction, and all that was promised for it."""
    return Evidence(
        record=Record(acknowledged={0: (PLAIN, PAYS, STUMBLES)}, rolled_back={4}),
        jobs=[
            JobRow(PLAIN, "completed", "plain", 0, attempt=1, crashes=0),
            JobRow(PAYS, "completed", "pays", 0, attempt=1, crashes=0),
            JobRow(STUMBLES, "completed", "stumbles", 0, attempt=2, crashes=0),
            JobRow(RECEIPT, "completed", "receipt", 0, attempt=1, crashes=0),
        ],
        orders={0},
        effects=[(PAYS, 0)],
        starts={PLAIN: 1, PAYS: 1, STUMBLES: 2, RECEIPT: 1},
        reasons={STUMBLES: Counter(raised=1)},
    )


def change(evidence: Evidence, id: int, **fields: object) -> None:
    """Changes the row of a job."""
    evidence.jobs = [replace(job, **fields) if job.id == id else job for job in evidence.jobs]  # type: ignore[arg-type]


def remove(evidence: Evidence, id: int) -> None:
    """Removes the rows of a job."""
    evidence.jobs = [job for job in evidence.jobs if job.id != id]


def crash(evidence: Evidence, id: int) -> None:
    """A crash that is on record, and counted."""
    evidence.starts[id] += 1
    evidence.reasons[id] = Counter(crashed=1)
    change(evidence, id, attempt=2, crashes=1)


def test_nothing_is_found_where_the_promises_held() -> None:
    assert findings(whole()).lines() == []
    assert runs_again(whole()) == 0


def test_a_crash_that_the_fault_explains_is_no_finding() -> None:
    evidence = whole()
    crash(evidence, PLAIN)
    assert findings(evidence, {"crashed"}).lines() == []
    assert runs_again(evidence) == 1


def test_a_lost_job_is_found() -> None:
    evidence = whole()
    remove(evidence, PLAIN)
    assert findings(evidence).lost == [PLAIN]


def test_a_start_without_a_reason_is_found() -> None:
    evidence = whole()
    evidence.starts[PLAIN] = 2
    assert findings(evidence).doubled == [PLAIN]


BROKEN: dict[str, Callable[[Evidence], object]] = {
    "job 1 is in 2 states at once": lambda e: e.jobs.append(e.jobs[0]),
    "job 1 (plain) has not completed, it is running": lambda e: change(e, PLAIN, state="running"),
    "job 1 has completed without having run": lambda e: e.starts.pop(PLAIN),
    "order 0 is missing": lambda e: setattr(e, "orders", set()),
    "order 4 was not acknowledged, and is there": lambda e: setattr(e, "orders", {0, 4}),
    "job 9 is of a transaction that was rolled back, 4": lambda e: e.jobs.append(
        JobRow(9, "completed", "plain", 4, 1, 0)
    ),
    "job 9 was enqueued a second time for transaction 0": lambda e: e.jobs.append(
        JobRow(9, "completed", "plain", 0, 1, 0)
    ),
    "job 2 has paid 2 times": lambda e: setattr(e, "effects", [(PAYS, 0), (PAYS, 0)]),
    "job 2 has paid 0 times": lambda e: setattr(e, "effects", []),
    "job 2 has paid and has not completed": lambda e: change(e, PAYS, state="scheduled"),
    "transaction 0 has 0 receipts for 1 payments": lambda e: remove(e, RECEIPT),
    "job 1 (plain) was crashed 1 times, which nothing here explains": lambda e: crash(e, PLAIN),
    "job 3 counts 3 attempts where 2 are on record: {'raised': 1}": lambda e: change(e, STUMBLES, attempt=3),
    "job 1 counts 1 crashes where 0 are on record": lambda e: change(e, PLAIN, crashes=1),
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_promise_is_found(line: str) -> None:
    evidence = whole()
    BROKEN[line](evidence)
    assert line in findings(evidence).lines()


# The table ------------------------------------------------------------------------------------------------


@pytest.mark.skipif("PGQUEUE_REWRITE_GUARANTEES" in os.environ, reason="this run writes the table")
def test_the_documented_table_is_of_this_suites_faults_and_nothing_was_lost_or_doubled() -> None:
    rows, names = rows_of(PAGE.read_text()), all_fault_names()
    told = "run: PGQUEUE_REWRITE_GUARANTEES=1 make faults (make soak for the rows that say so)"
    assert [name for name in names if name not in rows] == [], f"not in the table; {told}"
    assert [*rows] == names, f"another order, or of no test any more; {told}"
    assert {row[3] for row in rows.values()} == {"0"}
    assert {row[5] for row in rows.values()} == {"0"}


def test_a_report_comes_with_that_of_its_test_from_whichever_process() -> None:
    found, collected = Report("a fault", tried=3, recoveries=[0.5, 1.5]), Collected()
    for when in ("setup", "call", "teardown"):
        told = pytest.TestReport(
            "a test", ("", None, ""), {}, "passed", None, when, user_properties=[told_as(found)]
        )
        collected.pytest_runtest_logreport(
            pytest.TestReport._from_json(told._to_json())
        )  # as pytest-xdist sends it
    assert collected.reports == {"a fault": found}


def test_a_run_rewrites_its_own_rows_and_leaves_the_others() -> None:
    page = rewritten(PAGE.read_text(), ["one", "two"], {"one": Report("one"), "two": Report("two", tried=1)})
    again = rewritten(page, ["two", "one"], {"two": Report("two", tried=2, jobs=3, recoveries=[1.0, 2.0])})
    assert rows_of(again) == {
        "two": ("two", "2", "3", "0", "0", "0", "1.50 s", "2.00 s"),
        "one": ("one", "0", "0", "0", "0", "0", "", ""),
    }
    assert table([Report("one").cells()]) in rewritten(page, ["one"], {})
