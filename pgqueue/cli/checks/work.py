"""The work: workers, queues that nobody serves, schedules that do not run, jobs that others keep from being served."""

from __future__ import annotations

from collections.abc import Iterator

from pgqueue.cli.checks.finding import Check, Finding, Patient, duration
from pgqueue.version import __version__

LATE_SECONDS = 120.0
"""A schedule that is due for longer is ticked by nobody; a worker that is silent for longer is dead."""
STARVED_SECONDS = 600.0


def workers(patient: Patient) -> Iterator[Finding]:
    """Whether they are alive, of one release, and have the tasks whose jobs they meet."""
    rows = patient.rows("select * from pgqueue_bi.workers order by id")
    for row in rows:
        if (row["silent_seconds"] or 0) > LATE_SECONDS:
            yield Finding(
                "warning",
                f"worker {row['id']} on {row['host']} has been silent for {duration(row['silent_seconds'])}, and nobody has "
                "taken its jobs back",
                "Run a worker: one of them leads upkeep, and rescues.",
            )
        if row["unknown_tasks"]:
            yield Finding(
                "error",
                f"worker {row['id']} on {row['host']} lacks tasks whose jobs it was given: {row['unknown_tasks']}; they are put "
                "off again and again",
                "Deploy a worker whose app has them; or register them; or cancel their jobs: pgqueue jobs cancel --task …",
            )
    versions = sorted({row["version"] for row in rows} | {__version__})
    if rows and len(versions) > 1:
        yield Finding(
            "warning",
            f"releases of pgqueue-jobs differ: workers have {', '.join(sorted({row['version'] for row in rows}))}, this command "
            f"is of {__version__}",
            "Finish the deployment; within one protocol all of them work together.",
        )


def queues(patient: Patient) -> Iterator[Finding]:
    """Whether what waits is served by anybody."""
    for row in patient.rows(
        "select queue, ready, workers, is_paused, paused_at, resumes_at from pgqueue_bi.queue_health order by queue"
    ):
        if row["ready"] and not row["workers"]:
            yield Finding(
                "error",
                f"{row['ready']:,} jobs are ready in {row['queue']} as last counted, and no worker serves it",
                f"Run one: pgqueue worker … -q {row['queue']}",
            )
        elif row["ready"] and row["is_paused"] and row["resumes_at"] is None:
            yield Finding(
                "warning",
                f"{row['queue']} has been paused since {row['paused_at']:%Y-%m-%d %H:%M} UTC, and {row['ready']:,} jobs wait",
                f"pgqueue queues resume {row['queue']}",
            )


def schedules(patient: Patient) -> Iterator[Finding]:
    """Whether they can run, and somebody ticks them."""
    for row in patient.rows(
        "select name, problem, extract(epoch from clock_timestamp() - next_due_at)::float8 as late, grace_seconds"
        " from pgqueue_bi.schedules where paused_at is null order by name"
    ):
        if row["problem"]:
            yield Finding(
                "error",
                f"the schedule {row['name']} cannot run: {row['problem']}",
                "Change it, then: pgqueue schedules resume " + row["name"],
            )
        elif row["late"] is not None and row["late"] > LATE_SECONDS:
            yield Finding(
                "error",
                f"the schedule {row['name']} has been due for {duration(row['late'])}: nobody ticks",
                "Run a worker, of any queue: one of them leads upkeep.",
            )


def upkeep(patient: Patient) -> Iterator[Finding]:
    """Whether somebody leads it, and keeps the figures that views show."""
    remedies = {
        "leader": "See what the workers log: upkeep.problem, database.refused.",
        "figures": "See what the workers log, and end what has been open for so long: pgqueue doctor --only snapshots.",
    }
    for row in patient.rows(
        "select check_name, detail from pgqueue_bi.health where queue is null and not is_healthy order by check_name"
    ):
        if row["check_name"] in remedies:
            yield Finding("error", row["detail"], remedies[row["check_name"]])


def starvation(patient: Patient) -> Iterator[Finding]:
    """Jobs of a low priority that wait while those of a higher one keep coming."""
    if not patient.row("select has_schema_privilege('pgqueue', 'usage') as it_may")["it_may"]:
        return  # the roles have said so
    # An empty higher lane starves nobody; one whose first job has just come is served.
    query = """
        select low.queue, low.priority, max(low.waited_seconds) as waited, min(high.priority) as by_priority
          from pgqueue.lane_heads() as low
          join pgqueue.lane_heads() as high on high.queue = low.queue and high.priority < low.priority
           and high.waited_seconds < low.waited_seconds / 10
         where low.waited_seconds > %s
           and not exists (select from pgqueue_bi.queue_health as h where h.queue = low.queue and (h.is_paused or h.workers = 0))
         group by low.queue, low.priority order by 1, 2"""
    for row in patient.rows(query, STARVED_SECONDS):
        yield Finding(
            "warning",
            f"jobs of priority {row['priority']} in {row['queue']} have waited for {duration(row['waited'])}, while those of "
            f"priority {row['by_priority']} are served: those keep all slots busy",
            "Give them a queue of their own, which takes turns with this one; or run more workers.",
        )


WORK: dict[str, Check] = {
    "workers": workers,
    "queues": queues,
    "schedules": schedules,
    "upkeep": upkeep,
    "starvation": starvation,
}
