"""The events that pgqueue logs: their names are stable. `docs/reference/events.md` is made of this and of the source.

The level and the fields of an event are what the code says where it logs it; `tests/test_log_events.py` holds the two
together.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class LogEvent(NamedTuple):
    """What a reader of the log wants to know of an event."""

    when: str
    todo: str = ""
    """Empty: nothing, it is good to know."""
    more_fields: tuple[str, ...] = ()
    """Fields that the source does not spell out where it logs the event."""


LOG_EVENTS: Mapping[str, LogEvent] = MappingProxyType(
    {
        # The worker's life
        "worker.started": LogEvent("A process of the worker is ready and claims jobs."),
        "worker.stopping": LogEvent(
            "A stop was asked for, by a signal or by an operator (`asked_by`). `how`: drain; cancel and release; kill."
        ),
        "worker.releases": LogEvent(
            "The drain limit is over, or a second signal came: jobs that still run are given back.",
            "Where it happens at each deploy, raise `drain_limit`, or cut the jobs into shorter ones.",
        ),
        "worker.stopped": LogEvent("The worker has ended."),
        "worker.child_died": LogEvent(
            "A process of the worker ended by itself (`ended_by`). It is replaced, and its jobs are rescued.",
            "Look for the kernel's out-of-memory killer, and for `jobs.rescued` with the same `worker`.",
        ),
        "worker.child_killed": LogEvent(
            "A process had not ended five seconds after its drain limit, and was killed.",
            "Look for handlers that neither await nor look at `ctx.cancelled`.",
        ),
        "worker.hung": LogEvent(
            "The event loop of a process stood still past the timeout of the jobs `job_ids`. It was killed and replaced.",
            "Find what blocks it: see `loop.blocked`.",
        ),
        "worker.stuck": LogEvent(
            "Half of the slots are held by handlers that do not end. A process of `pgqueue worker` is replaced.",
            "See `slot.stuck`. A worker inside of an application has to be started anew with it.",
        ),
        "worker.declared_dead": LogEvent(
            "The worker had not been heard of for longer than its lease: others have its jobs, and it starts anew.",
            "Look for a machine that slept, a network that was cut, a process that had no CPU.",
        ),
        "schema.refused": LogEvent(
            "The schema was replaced by one that does not serve this release any more, or not yet. The worker claims nothing more, "
            "lets its jobs end, and ends with exit code 1.",
            "Start workers of the release that `error` asks for; see docs/howto/upgrading.md for the order of an upgrade.",
        ),
        "worker.failed": LogEvent(
            "A worker inside of an application met an error of pgqueue's own, and starts anew.", "Report it."
        ),
        "worker.upkeep_failed": LogEvent(
            "A service of the worker met an error of pgqueue's own, and starts anew.", "Report it."
        ),
        "queues.set": LogEvent("What operators have set for queues holds from now on."),
        "wake.poll": LogEvent(
            "LISTEN is silent on this DSN, so the worker looks once in `poll_interval`.",
            "Give workers a DSN that leads to the server itself, or say `wake = 'poll'`.",
        ),
        "claim.unheard": LogEvent(
            "An answer with claimed jobs was lost with its connection. They were given back."
        ),
        "endings.forgotten": LogEvent(
            "The database came back in an earlier state, and had jobs (`job_ids`, the first hundred) in the hands of this worker that "
            "it had ended. They were given back, and run again.",
            "See [high availability](../howto/high-availability.md): commits were lost in a failover, or an older dump was restored.",
        ),
        "app.not_loaded": LogEvent(
            "A process that runs jobs apart could not import the app.",
            "Import what `app` names by hand, as the worker's user and in its folder.",
        ),
        # The database
        "database.recovered": LogEvent(
            "The server has recovered from a crash, a standby was promoted, or nobody could reach it for a while: leases count from "
            "now, and each process gives back what it does not hold.",
        ),
        "database.unavailable": LogEvent(
            "The database could not be reached. `link` says for what; it is tried again until it answers, and said again in 10 s, with "
            "how many `times` it failed since.",
            "When it lasts: is the server up, is it reachable, does it have connections left?",
        ),
        "database.refused": LogEvent(
            "The server refused a call: a right that is missing, a full disk, a lock that was waited for too long. It "
            "is tried again, and said again in 10 s, with how many `times` it was refused since.",
            "`pgqueue doctor` looks for the cause.",
        ),
        "upkeep.problem": LogEvent(
            "One of the leader's duties failed; the others were done.",
            "`problem` names it: often a right, a lock, or a full disk.",
        ),
        "retention.dropped": LogEvent("A day of the history has passed the longest retention."),
        "retention.trimmed": LogEvent("Ended jobs have passed the retention of their queues."),
        "retention.blocked": LogEvent(
            "A session (`blocked_by`) reads the day that is to be dropped. It is tried again.",
            "When it lasts for hours: end that session.",
        ),
        # Jobs
        "job.failed": LogEvent(
            "An attempt failed. There will be another one in `retry_in` seconds; null: when a worker is free.",
            "`pgqueue jobs show <id>` has the traceback.",
        ),
        "job.dead": LogEvent(
            "The job is a dead letter: `reason` says why it is not tried again.",
            "`pgqueue dead show <id>`; once the cause is gone, `pgqueue dead replay <id>`.",
        ),
        "job.expired": LogEvent("Its time to start was over: the job ends as cancelled."),
        "job.cancelling": LogEvent("Somebody cancels the job while it runs here: its handler is told."),
        "job.key_missing": LogEvent(
            "The job's args are encrypted with a key that this worker does not have: it is tried again in 30 seconds.",
            "Add the key that `error` names behind the others in `encryption_keys`.",
        ),
        "job.put_off": LogEvent(
            "The job is a suspect, and the processes for suspects are taken: it is tried again in about ten seconds."
        ),
        "jobs.rescued": LogEvent(
            "Jobs of a process that died, or fell silent, were taken back. `started`: of how many the handler had begun.",
            "Look why it ended: `worker.child_died`, `worker.hung`.",
        ),
        "jobs.promoted": LogEvent("Scheduled jobs have become ready."),
        "history.summarized": LogEvent(
            "Today's history has grown by some megabytes since the last time, and its index covers them now."
        ),
        "task.unknown": LogEvent(
            "The app has no such task. The job was put back; said once for each task.",
            "Deploy a worker whose app has it, or remove its jobs: `pgqueue jobs cancel --all-matching --task …`.",
        ),
        "lease.lost": LogEvent(
            "The attempt was no longer this worker's when it ended. `dropped`: what is not recorded.",
            "Look for `worker.declared_dead` or a job that was cancelled. Raise `lease` where machines stall.",
        ),
        "settle.unconfirmed": LogEvent(
            "The connection broke while an ending was recorded. It may have been recorded, or the job comes again."
        ),
        "settle.refused": LogEvent(
            "The server refused the text of a result or of an error: the ending is recorded without it.",
            "Report it, with `error`.",
        ),
        "slot.stuck": LogEvent(
            "A handler neither ended nor could be stopped after its timeout. It keeps its slot until it returns.",
            "Let it look at `ctx.cancelled`, give its own calls time-outs, or declare it `executor='process'`.",
        ),
        "result.not_kept": LogEvent(
            "What the handler returned cannot be stored (`reason`). The job is completed.",
            "Return less, or what JSON can say.",
        ),
        "progress.dropped": LogEvent("What was given to `ctx.progress` cannot be stored (`reason`)."),
        "reports.dropped": LogEvent(
            "Log lines and progress of jobs could not be stored. Their endings were.",
            "`error` says why; `pgqueue doctor` looks for the cause.",
        ),
        "transaction.long": LogEvent(
            "A transactional attempt kept its transaction open for `seconds`: the longer, the more dead rows pile up.",
            "Do the slow part before, or in a job of its own.",
        ),
        "retry.function_failed": LogEvent(
            "The function of a `Custom` retry policy raised, or gave no wait. The default wait holds.",
            "Mend it.",
        ),
        "retry.policy_failed": LogEvent("A retry policy raised. The default wait holds.", "Mend it."),
        "provider.close_failed": LogEvent(
            "A provider raised while it was closed at the end of the worker.", "Mend it."
        ),
        # The event loop, processes of jobs
        "loop.blocked": LogEvent(
            "The event loop has stood still for `seconds`: the job, or the `suspects`, kept it from running at `stack`.",
            "Await what waits; declare what blocks as a plain `def`, what computes as `executor='process'`.",
        ),
        "loop.unblocked": LogEvent("It runs again, after `seconds`."),
        "watchdog.failed": LogEvent("Looking after the event loop failed; it goes on.", "Report it."),
        "process.not_ready": LogEvent(
            "No process could be started for a job that runs apart. The job was put off.",
            "Look at the lines before: the app is imported anew for each process.",
        ),
        "process.not_understood": LogEvent(
            "A process speaks another release of pgqueue.", "Restart the worker."
        ),
        "process.replaced": LogEvent("A process has served its time: `after` says by which limit."),
        # Schedules
        "schedule.created": LogEvent("The start of a worker has made a schedule that the code defines."),
        "schedule.changed": LogEvent("The start of a worker has brought a schedule to what the code says."),
        "schedule.removed": LogEvent(
            "The start of a worker has removed a schedule that the code no longer defines.",
            "If it was not meant: two apps have one name, see `App(name=…)`.",
        ),
        "schedule.foreign": LogEvent(
            "A schedule of the code has the name of another one, which is left as it is.",
            "Delete that one, or give one of the two another name.",
        ),
        "schedules.brought": LogEvent("The app's schedules are in the database."),
        "schedules.refused": LogEvent(
            "The database refused the app's schedules: none was changed.",
            "Mend what `error` names, and start the worker anew.",
        ),
        "schedule.ticked": LogEvent("A schedule was due, and has enqueued its jobs."),
        "schedule.refused": LogEvent(
            "A schedule was due, and the database refused to enqueue. It is tried again.",
            "`error` says why.",
        ),
        "schedule.broken": LogEvent(
            "A schedule cannot run (`problem`), and does not until somebody changes or resumes it.",
            "`pgqueue schedules show <name>`.",
        ),
        # Hooks
        "hook.failed": LogEvent(
            "A hook raised. The job is not harmed.",
            "Mend the hook.",
            ("told_of", "job_id", "task", "check", "queue"),
        ),
        "hook.timeout": LogEvent(
            "A hook took longer than 30 seconds, and was cancelled.",
            "Give its calls time-outs, or enqueue a job instead.",
            ("told_of", "job_id", "task", "check", "queue"),
        ),
        "hooks.dropped": LogEvent(
            "Events were not told to hooks: those are slower than the jobs.",
            "Make hooks faster; what must not be missed belongs into a job.",
        ),
        # Others
        "stdlib.logged": LogEvent(
            "A library or the application said `message` through Python's `logging`, which nobody has configured in this process.",
            "`logger` says who spoke. Configure `logging` where the app is defined to have such lines as you like them.",
        ),
        # Metrics
        "metrics.listening": LogEvent("The endpoint for metrics answers."),
        "metrics.readable": LogEvent("The figures of the database can be read again."),
        "metrics.unreadable": LogEvent(
            "The figures of the database cannot be read (`problem`); the page has those of the processes.",
            "Is the database up, may this role read the views (`pgqueue_monitor`)?",
        ),
        "metrics.failed": LogEvent("A request for the metrics met an error of pgqueue's own.", "Report it."),
        "metrics.hung_up": LogEvent("Whoever asked for the metrics did not wait for the answer."),
    }
)
"""By name, in the order of the page."""
