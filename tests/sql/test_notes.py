"""Notes about attempts, from outside of their handlers."""

from __future__ import annotations

import psycopg

from tests.sql.acting import call, claim, enqueue, register


def test_a_note_stands_in_the_jobs_record_beside_the_reports_also_after_its_end(
    connection: psycopg.Connection,
) -> None:
    worker, id = register(connection), enqueue(connection)
    (job,) = claim(connection, worker)
    for line in ("while it ran", "after its end"):
        call(connection, "note", job_id=id, worker_id=worker, attempt=1, level="warning", line=line)
        call(connection, "complete", ids=[id], leases=[job.lease])

    (record,) = call(connection, "job_record", id=id)
    said = [(report["attempt"], report["worker_id"], report["lines"]) for report in record["reports"]]
    assert [(attempt, by, [line["text"] for line in lines]) for attempt, by, lines in said] == [
        (1, worker, ["while it ran"]),
        (1, worker, ["after its end"]),
    ]
    (line,) = said[0][2]
    assert (line["level"], line.keys()) == ("warning", {"at", "level", "text"})
