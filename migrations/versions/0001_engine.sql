-- Frozen: written by migrations/freeze.py from sql/ and never changed after its release.

-- sql/0_schema.sql
-- The schema, its two counters and the protocol that it speaks.

create schema pgqueue;
comment on schema pgqueue is 'pgqueue: jobs in the application''s own database. Call its functions; read schema pgqueue_bi.';

create sequence pgqueue.job_ids;
comment on sequence pgqueue.job_ids is 'A job''s id, drawn once, the same in every table that the job passes through.';

-- Hazard: a position may only be drawn by the column default or by nextval inside the INSERT itself, never
-- into a variable first, never cached, never set back. The proof of the lane floors rests on it.
create sequence pgqueue.positions cache 1;
comment on sequence pgqueue.positions is 'A job''s place in its lane, drawn anew each time it becomes ready.';

create sequence pgqueue.worker_ids;
comment on sequence pgqueue.worker_ids is 'A worker process''s id.';

create function pgqueue.protocol(out newest integer, out oldest integer)
language sql immutable parallel safe
return (1, 1);
comment on function pgqueue.protocol() is
'The range of protocols that this schema serves. Whoever opens a connection of its own asks it before it touches data, a worker again every minute.';

-- sql/1_tables/10_ready_jobs.sql
-- ready: may be claimed now.
-- In: enqueue, promote, release, rescue, replay. Out: claim.
-- A lane is (queue, priority, returned or not): 2 * priority + 1, or + 0 for a job that came back without fault
-- of its own. A lane is served in the order of positions.

create table pgqueue.ready_jobs (
    id           bigint      not null,
    position     bigint      not null default nextval('pgqueue.positions'),
    run_at       timestamptz not null,
    created_at   timestamptz not null,
    lane         smallint    not null,
    attempt      smallint    not null,
    max_attempts smallint    not null,
    crashes      smallint    not null,
    queue        text        collate "C" not null,
    task         text        collate "C" not null,
    args         jsonb       not null,
    unique_key   text        collate "C",
    options      jsonb,
    constraint ready_jobs_one_row_a_job primary key (id)
);
create unique index ready_jobs_lane on pgqueue.ready_jobs (queue, lane, position);

comment on table  pgqueue.ready_jobs is 'Jobs that may be claimed now, in lanes. One row a job; a job is in one state table only.';
comment on column pgqueue.ready_jobs.id is 'The job''s id, the same for its whole life.';
comment on column pgqueue.ready_jobs.position is 'Place in the lane; drawn by the default only (see pgqueue.positions).';
comment on column pgqueue.ready_jobs.run_at is 'When the job became due.';
comment on column pgqueue.ready_jobs.created_at is 'When the job was enqueued.';
comment on column pgqueue.ready_jobs.lane is '2 * priority (0 first ... 9) + 1, or + 0 when returned by a release or a rescue.';
comment on column pgqueue.ready_jobs.attempt is 'Attempts made so far; counted at claim.';
comment on column pgqueue.ready_jobs.max_attempts is 'Attempts after which a failure makes a dead letter.';
comment on column pgqueue.ready_jobs.crashes is 'How often a worker process died while it ran this job, or may have.';
comment on column pgqueue.ready_jobs.queue is 'The named line that the job waits in.';
comment on column pgqueue.ready_jobs.task is 'The registered function, by name.';
comment on column pgqueue.ready_jobs.args is 'The job''s arguments, one JSON object.';
comment on column pgqueue.ready_jobs.unique_key is 'Set when the job holds a row of unique_keys; freed when it ends.';
comment on column pgqueue.ready_jobs.options is 'What few jobs need, null for the rest: tags, metadata, retry.';

-- sql/1_tables/11_scheduled_jobs.sql
-- scheduled: waits for its time.
-- In: enqueue with a future run_at, a failed attempt's backoff, snooze. Out: promote, retry.

create table pgqueue.scheduled_jobs (
    id           bigint      not null,
    run_at       timestamptz not null,
    created_at   timestamptz not null,
    lane         smallint    not null,
    attempt      smallint    not null,
    max_attempts smallint    not null,
    crashes      smallint    not null,
    queue        text        collate "C" not null,
    task         text        collate "C" not null,
    args         jsonb       not null,
    unique_key   text        collate "C",
    options      jsonb,
    constraint scheduled_jobs_one_row_a_job primary key (id)
);
create index scheduled_jobs_due on pgqueue.scheduled_jobs (run_at);

comment on table  pgqueue.scheduled_jobs is 'Jobs that wait for their time. Columns as in ready_jobs.';
comment on column pgqueue.scheduled_jobs.run_at is 'When the job becomes ready. Always later than the moment of the insert (promotion relies on it).';

-- sql/1_tables/12_running_jobs.sql
-- running: in the hands of a worker.
-- In: claim. Out: complete, fail, snooze, release, rescue; each proves its right by (id, lease).

create table pgqueue.running_jobs (
    id           bigint      not null,
    worker_id    bigint      not null,
    lease        bigint      not null,
    run_at       timestamptz not null,
    created_at   timestamptz not null,
    claimed_at   timestamptz not null,
    lane         smallint    not null,
    attempt      smallint    not null,
    max_attempts smallint    not null,
    crashes      smallint    not null,
    queue        text        collate "C" not null,
    task         text        collate "C" not null,
    args         jsonb       not null,
    unique_key   text        collate "C",
    options      jsonb,
    constraint running_jobs_one_claim_a_job primary key (id)
);

comment on table  pgqueue.running_jobs is 'Jobs in the hands of a worker. Columns as in ready_jobs, and:';
comment on column pgqueue.running_jobs.worker_id is 'The worker that claimed the job.';
comment on column pgqueue.running_jobs.lease is 'The fence: 64 random bits drawn for the claim. An ending without it changes nothing.';
comment on column pgqueue.running_jobs.claimed_at is 'When the claim was made.';

-- sql/1_tables/13_finished_jobs.sql
-- completed, cancelled: the history.
-- In: complete, discard. Out: retention, whole days at a time.
-- One partition a day, made 7 days ahead by retain(); an ending that finds none goes to the overflow
-- partition (day = -infinity), so that a missing partition never stops one.

create table pgqueue.finished_jobs (
    id           bigint      not null,
    worker_id    bigint,
    run_at       timestamptz not null,
    created_at   timestamptz not null,
    claimed_at   timestamptz,
    finished_at  timestamptz not null,
    day          date        not null,
    lane         smallint    not null,
    attempt      smallint    not null,
    max_attempts smallint    not null,
    crashes      smallint    not null,
    queue        text        collate "C" not null,
    task         text        collate "C" not null,
    state        text        collate "C" not null,
    args         jsonb       not null,
    unique_key   text        collate "C",
    options      jsonb,
    reason       text,
    result       jsonb
) partition by range (day);
-- BRIN, not btree: ids grow with time, so a block range holds few of them, and the hot insert pays nothing. Either column
-- can be looked for alone; two in one index cost an insert no more than one.
create index finished_jobs_by_id on pgqueue.finished_jobs using brin (id, finished_at) with (pages_per_range = 32, autosummarize = on);
create table pgqueue.finished_jobs_overflow partition of pgqueue.finished_jobs
    for values from (minvalue) to ('2000-01-01');

comment on table  pgqueue.finished_jobs is 'The history: completed and cancelled jobs, a partition a day. Columns as in running_jobs, and:';
comment on table  pgqueue.finished_jobs_overflow is 'Endings of a day that had no partition; normally empty.';
comment on column pgqueue.finished_jobs.finished_at is 'When the job ended.';
comment on column pgqueue.finished_jobs.day is 'The partition: the UTC day of finished_at, or -infinity in the overflow.';
comment on column pgqueue.finished_jobs.state is 'completed or cancelled.';
comment on column pgqueue.finished_jobs.reason is 'Why it was cancelled (discarded, ...), or why a completed one''s result was not kept; else null.';
comment on column pgqueue.finished_jobs.result is 'What the handler returned, when its task keeps results; else null.';

-- sql/1_tables/14_dead_letters.sql
-- dead: will not be tried again by itself.
-- In: fail with no attempt left or a permanent error, rescue after too many crashes, or one when on_crash is dead. Out: replay, discard.

create table pgqueue.dead_letters (
    id           bigint      not null,
    worker_id    bigint,
    run_at       timestamptz not null,
    created_at   timestamptz not null,
    claimed_at   timestamptz,
    died_at      timestamptz not null,
    lane         smallint    not null,
    attempt      smallint    not null,
    max_attempts smallint    not null,
    crashes      smallint    not null,
    queue        text        collate "C" not null,
    task         text        collate "C" not null,
    args         jsonb       not null,
    unique_key   text        collate "C",
    options      jsonb,
    reason       text        collate "C" not null,
    error        text,
    message      text,
    errors       jsonb       not null,
    fingerprint  text        collate "C",
    constraint dead_letters_one_row_a_job primary key (id)
);
create index dead_letters_by_time on pgqueue.dead_letters (died_at);

comment on table  pgqueue.dead_letters is 'Jobs that will not be tried again by themselves. Columns as in running_jobs, and:';
comment on column pgqueue.dead_letters.died_at is 'When the last attempt ended.';
comment on column pgqueue.dead_letters.unique_key is 'The key that the job held; a replay takes it again.';
comment on column pgqueue.dead_letters.reason is 'exhausted, permanent, failed, invalid_args or crashed.';
comment on column pgqueue.dead_letters.error is 'The class of the last error.';
comment on column pgqueue.dead_letters.message is 'The text of the last error.';
comment on column pgqueue.dead_letters.errors is 'Every failed attempt, oldest first: attempt, failed_at, error, message, traceback.';
comment on column pgqueue.dead_letters.fingerprint is 'That of the last error: the same for errors that come from the same place.';

-- sql/1_tables/15_blocked_jobs.sql
-- blocked: waits for another job to end.
-- In: enqueue that asks to run again after the running job of its key. Out: unblock, when that one has ended; cancel.

create table pgqueue.blocked_jobs (
    id           bigint      not null,
    after_id     bigint      not null,
    run_at       timestamptz not null,
    created_at   timestamptz not null,
    lane         smallint    not null,
    attempt      smallint    not null,
    max_attempts smallint    not null,
    crashes      smallint    not null,
    queue        text        collate "C" not null,
    task         text        collate "C" not null,
    args         jsonb       not null,
    unique_key   text        collate "C" not null,
    options      jsonb,
    constraint blocked_jobs_one_row_a_job primary key (id),
    constraint blocked_jobs_one_follow_up_a_job unique (after_id)
);

comment on table  pgqueue.blocked_jobs is 'Jobs that wait for another one to end. Columns as in ready_jobs, and:';
comment on column pgqueue.blocked_jobs.after_id is 'The job that it waits for: at most one job waits for each.';
comment on column pgqueue.blocked_jobs.run_at is 'When it may become ready at the earliest.';
comment on column pgqueue.blocked_jobs.unique_key is 'The key that the other job holds, and that it takes over.';

-- sql/1_tables/20_job_failures.sql
-- One row per failed attempt, a partition a day like finished_jobs; a dead letter carries a copy of its own.

create table pgqueue.job_failures (
    job_id      bigint      not null,
    worker_id   bigint      not null,
    failed_at   timestamptz not null,
    day         date        not null,
    attempt     smallint    not null,
    queue       text        collate "C" not null,
    task        text        collate "C" not null,
    error       text        not null,
    message     text        not null,
    traceback   text,
    fingerprint text        collate "C",
    dead_reason text        collate "C"
) partition by range (day);
create index job_failures_by_time on pgqueue.job_failures using brin (failed_at) with (pages_per_range = 32, autosummarize = on);
create index job_failures_by_job on pgqueue.job_failures (job_id);
create index job_failures_by_crash on pgqueue.job_failures (worker_id) where fingerprint = 'crashed';
create table pgqueue.job_failures_overflow partition of pgqueue.job_failures
    for values from (minvalue) to ('2000-01-01');

comment on table  pgqueue.job_failures is 'One row per failed attempt, a partition a day.';
comment on table  pgqueue.job_failures_overflow is 'Failures of a day that had no partition; normally empty.';
comment on column pgqueue.job_failures.job_id is 'The job.';
comment on column pgqueue.job_failures.worker_id is 'The worker that ran the attempt.';
comment on column pgqueue.job_failures.failed_at is 'When the attempt ended.';
comment on column pgqueue.job_failures.day is 'The partition: the UTC day of failed_at, or -infinity in the overflow.';
comment on column pgqueue.job_failures.attempt is 'Which attempt, counted from 1.';
comment on column pgqueue.job_failures.queue is 'The job''s queue.';
comment on column pgqueue.job_failures.task is 'The job''s task.';
comment on column pgqueue.job_failures.error is 'The class of the error.';
comment on column pgqueue.job_failures.message is 'The text of the error, made safe and cut.';
comment on column pgqueue.job_failures.traceback is 'The traceback without local variables, made safe and cut.';
comment on column pgqueue.job_failures.fingerprint is 'The same for errors that come from the same place.';
comment on column pgqueue.job_failures.dead_reason is 'The reason of the dead letter that this failure made; null: the job was tried again.';

-- sql/1_tables/21_unique_keys.sql
-- Who holds a key.
-- kind 'unique': the unfinished job of (task, key) whose turn it is; the row goes when the job ends.
-- kind 'period': one job of (task, key) for a while, also after it has ended; the row goes when the time is over.
-- kind 'idempotency': the same enqueue repeated makes one job for 24 h, also after that job has ended.

create table pgqueue.unique_keys (
    kind       text        collate "C" not null,
    task       text        collate "C" not null,
    key        text        collate "C" not null,
    job_id     bigint      not null,
    expires_at timestamptz,
    constraint unique_keys_one_job_a_key primary key (kind, task, key)
);
create index unique_keys_expiry on pgqueue.unique_keys (expires_at) where expires_at is not null;

comment on table  pgqueue.unique_keys is 'Which job holds a key. The primary key is what makes uniqueness true at every isolation level.';
comment on column pgqueue.unique_keys.kind is 'unique, period or idempotency.';
comment on column pgqueue.unique_keys.task is 'The task that the key is scoped to.';
comment on column pgqueue.unique_keys.key is 'The key, as the producer gave it.';
comment on column pgqueue.unique_keys.job_id is 'The job that holds it.';
comment on column pgqueue.unique_keys.expires_at is 'period, idempotency: when the key may be taken again; unique: null.';

-- sql/1_tables/22_cancel_requests.sql
-- Running jobs that somebody wants to end. A table of its own, because running_jobs is never updated.
-- In: cancel. Out: the job's ending as cancelled; what is left of a job that completed first goes with upkeep.

create table pgqueue.cancel_requests (
    job_id       bigint      not null,
    worker_id    bigint      not null,
    lease        bigint      not null,
    requested_at timestamptz not null,
    reason       text        not null,
    constraint cancel_requests_one_row_a_job primary key (job_id)
);

comment on table  pgqueue.cancel_requests is 'Running jobs that are to be cancelled. Their workers are told; whatever else ends such an attempt but its completion ends the job.';
comment on column pgqueue.cancel_requests.job_id is 'The job.';
comment on column pgqueue.cancel_requests.worker_id is 'The worker that runs it.';
comment on column pgqueue.cancel_requests.lease is 'The claim that is to end.';
comment on column pgqueue.cancel_requests.requested_at is 'When it was asked for.';
comment on column pgqueue.cancel_requests.reason is 'Why, for the history.';

-- sql/1_tables/23_job_steps.sql
-- Steps of jobs that have been taken, so that a later attempt does not take them again.
-- In: record_step. Out: upkeep, when the job has ended.

create table pgqueue.job_steps (
    job_id      bigint      not null,
    name        text        collate "C" not null,
    attempt     smallint    not null,
    recorded_at timestamptz not null,
    result      jsonb       not null,
    constraint job_steps_taken_once primary key (job_id, name)
);
create index job_steps_by_time on pgqueue.job_steps (recorded_at);

comment on table  pgqueue.job_steps is 'Steps of jobs that have been taken. One row a job and name.';
comment on column pgqueue.job_steps.job_id is 'The job.';
comment on column pgqueue.job_steps.name is 'The step, as its handler calls it.';
comment on column pgqueue.job_steps.attempt is 'The attempt that took it.';
comment on column pgqueue.job_steps.recorded_at is 'When it was recorded.';
comment on column pgqueue.job_steps.result is 'What it returned; JSON null for nothing.';

-- sql/1_tables/24_job_progress.sql
-- How far running jobs have come, as their handlers say; a row only for those that say something.
-- In: note_progress, at most 4 times a second and job. Out: note_reports when the attempt ends, which keeps the last of it;
-- retain, for what a worker that died has left.

create table pgqueue.job_progress (
    job_id   bigint      not null,
    lease    bigint      not null,
    noted_at timestamptz not null,
    progress jsonb       not null,
    constraint job_progress_one_row_a_job primary key (job_id)
) with (fillfactor = 50);  -- room for HOT updates in the page

comment on table  pgqueue.job_progress is 'How far running jobs have come. A row counts while its lease is the job''s.';
comment on column pgqueue.job_progress.job_id is 'The job.';
comment on column pgqueue.job_progress.lease is 'The claim that it belongs to.';
comment on column pgqueue.job_progress.noted_at is 'When the worker wrote it.';
comment on column pgqueue.job_progress.progress is 'done, total, message, metadata, those that the handler gave.';

-- sql/1_tables/25_job_reports.sql
-- What attempts have left to be looked at: their last lines of ctx.log, and how far they had come. A partition a day like
-- finished_jobs; a row only for attempts that said something.

create table pgqueue.job_reports (
    job_id      bigint      not null,
    worker_id   bigint      not null,
    reported_at timestamptz not null,
    day         date        not null,
    attempt     smallint    not null,
    progress    jsonb,
    lines       jsonb
) partition by range (day);
create index job_reports_by_job on pgqueue.job_reports (job_id);
create table pgqueue.job_reports_overflow partition of pgqueue.job_reports
    for values from (minvalue) to ('2000-01-01');

comment on table  pgqueue.job_reports is 'The last log lines and the last progress of attempts that have ended, a partition a day.';
comment on table  pgqueue.job_reports_overflow is 'Reports of a day that had no partition; normally empty.';
comment on column pgqueue.job_reports.job_id is 'The job.';
comment on column pgqueue.job_reports.worker_id is 'The worker that ran the attempt.';
comment on column pgqueue.job_reports.reported_at is 'When the attempt ended.';
comment on column pgqueue.job_reports.day is 'The partition: the UTC day of reported_at, or -infinity in the overflow.';
comment on column pgqueue.job_reports.attempt is 'Which attempt, counted from 1.';
comment on column pgqueue.job_reports.progress is 'As in job_progress; null when the handler said nothing of it.';
comment on column pgqueue.job_reports.lines is 'The last 100 lines, 64 KiB of them at the most, oldest first: at, level, text; at is the worker''s clock.';

-- sql/1_tables/30_queues.sql
-- A row a queue that somebody has said something about; a queue without a row has the defaults.

create table pgqueue.queues (
    name              text             collate "C" not null,
    paused_at         timestamptz,
    worker_limit      integer,
    max_attempts      integer,
    timeout           double precision,
    target_wait       double precision,
    keep_completed    interval,
    keep_cancelled    interval,
    keep_dead         interval,
    max_completed     bigint,
    max_cancelled     bigint,
    max_dead          bigint,
    resumes_at        timestamptz,
    max_depth         bigint,
    max_oldest        double precision,
    max_failure_ratio double precision,
    tolerated_dead    bigint,
    constraint queues_one_row_a_name primary key (name),
    constraint queues_limit_leaves_a_slot check (worker_limit >= 1),
    constraint queues_attempts_that_a_job_can_have check (max_attempts between 1 and 32767),
    constraint queues_times_are_positive_and_finite check ((timeout > 0 and timeout < 'infinity') is not false
        and (target_wait > 0 and target_wait < 'infinity') is not false
        and (max_oldest > 0 and max_oldest < 'infinity') is not false),
    constraint queues_keep_for_no_negative_time check ((keep_completed >= '0') is not false
        and (keep_cancelled >= '0') is not false and (keep_dead >= '0') is not false),
    constraint queues_keep_no_negative_number check ((max_completed >= 0) is not false
        and (max_cancelled >= 0) is not false and (max_dead >= 0) is not false),
    constraint queues_depth_is_no_negative_number check (max_depth >= 0),
    constraint queues_failure_ratio_is_between_0_and_1 check (max_failure_ratio between 0 and 1),
    constraint queues_tolerate_no_negative_number check (tolerated_dead >= 0)
);

comment on table  pgqueue.queues is 'What operators have set for a queue, effective at once. No row, or null: the defaults.';
comment on column pgqueue.queues.name is 'The queue.';
comment on column pgqueue.queues.paused_at is 'Since when no job of it is claimed; null: not paused.';
comment on column pgqueue.queues.worker_limit is 'How many slots of each worker it may take; null: all of them.';
comment on column pgqueue.queues.max_attempts is 'Attempts that its jobs have when neither their task nor their enqueue says; null: 5.';
comment on column pgqueue.queues.timeout is 'Seconds that an attempt may take when neither its task nor its enqueue says; null: as long as it takes.';
comment on column pgqueue.queues.target_wait is 'Seconds that a job should wait at the most, from due to claimed; null: no target.';
comment on column pgqueue.queues.keep_completed is 'How long completed jobs are kept; 0: until they are rolled up; null: 7 days.';
comment on column pgqueue.queues.keep_cancelled is 'How long cancelled jobs are kept; 0: until they are rolled up; null: 7 days.';
comment on column pgqueue.queues.keep_dead is 'How long dead letters are kept; 0: until they are rolled up; null: for ever.';
comment on column pgqueue.queues.max_completed is 'How many completed jobs are kept, the latest, to the minute in which they ended (the hour, if that is two days ago); null: any number.';
comment on column pgqueue.queues.max_cancelled is 'How many cancelled jobs are kept, in the same way; null: any number.';
comment on column pgqueue.queues.max_dead is 'How many dead letters are kept, the latest; null: any number.';
comment on column pgqueue.queues.resumes_at is 'When a paused queue goes on by itself; null: when somebody resumes it.';
comment on column pgqueue.queues.max_depth is 'Ready jobs above which the queue is unhealthy; null: any number is healthy.';
comment on column pgqueue.queues.max_oldest is 'Seconds that the oldest ready job has waited, above which the queue is unhealthy; null: any age is healthy.';
comment on column pgqueue.queues.max_failure_ratio is 'The share of failed attempts, 0 to 1, above which the queue is unhealthy; null: any is healthy.';
comment on column pgqueue.queues.tolerated_dead is 'Dead letters above which the queue is unhealthy; null: any number is healthy. (How many are kept: max_dead.)';

-- Whether max_attempts was ever set for a queue. A sequence, because every enqueue wants to know: to look at a sequence's
-- last value is a function call, to look into a table costs a quarter of an enqueue.
create sequence pgqueue.attempts_set;
comment on sequence pgqueue.attempts_set is 'Has a value when a queue has, or had, a max_attempts of its own: then enqueue looks.';

-- sql/1_tables/31_workers.sql
-- Who works. A worker is one child process; its supervisor beats for it.
-- Two tables, because claim reads and key-share-locks `workers`, which therefore never changes,
-- while the heartbeat changes all the time and would grow a chain of dead versions under a held snapshot.

create table pgqueue.workers (
    id            bigint      not null default nextval('pgqueue.worker_ids'),
    supervisor_id bigint      not null,
    host          text        not null,
    pid           integer     not null,
    version       text        not null,
    queues        text[]      collate "C" not null,
    concurrency   integer     not null,
    lease         interval    not null,
    session_lock  boolean     not null,
    started_at    timestamptz not null,
    unknown_tasks text[]      collate "C" not null default '{}',
    constraint workers_one_row_a_process primary key (id)
);
comment on table  pgqueue.workers is 'Worker processes that are registered. The row goes when the worker ends or is declared dead.';
comment on column pgqueue.workers.id is 'The worker''s id.';
comment on column pgqueue.workers.supervisor_id is 'The supervisor process above it: 63 random bits, also the key of its session advisory lock.';
comment on column pgqueue.workers.host is 'Where it runs.';
comment on column pgqueue.workers.pid is 'Its process id there.';
comment on column pgqueue.workers.version is 'Its pgqueue.__version__.';
comment on column pgqueue.workers.queues is 'The queues that it serves.';
comment on column pgqueue.workers.concurrency is 'Its slots: how many jobs it runs at once.';
comment on column pgqueue.workers.lease is 'How long its heartbeat may stand still before its jobs are given to others.';
comment on column pgqueue.workers.session_lock is 'Whether its supervisor holds a session advisory lock (not behind a transaction pooler).';
comment on column pgqueue.workers.started_at is 'When it registered.';
comment on column pgqueue.workers.unknown_tasks is 'Tasks whose jobs it had to put back, because its app does not have them.';

create table pgqueue.heartbeats (
    worker_id bigint      not null,
    beat_at   timestamptz not null,
    constraint heartbeats_one_row_a_worker primary key (worker_id)
) with (fillfactor = 50);  -- room for HOT updates in the page
comment on table  pgqueue.heartbeats is 'When each worker was last known to be alive.';
comment on column pgqueue.heartbeats.worker_id is 'The worker.';
comment on column pgqueue.heartbeats.beat_at is 'The last beat, by the database''s clock.';

-- sql/1_tables/32_sleepers.sql
-- Idle workers that want a NOTIFY. Every enqueue reads it, so it must stay tiny: a worker registers at most
-- 5 times a second and stays registered until it has been busy for 200 ms.
-- A row is looked for by queue and period and never further back than 35 s: under a held snapshot no dead version can go,
-- and each nap leaves two of them; so the key changes every ten seconds, and readers walk over the last few alone.
-- Unlogged: after a crash of the server nobody sleeps, every worker reconnects and looks.

create unlogged table pgqueue.sleepers (
    queue     text        collate "C" not null,
    period    timestamptz not null,
    worker_id bigint      not null,
    slept_at  timestamptz not null,
    constraint sleepers_one_row_a_worker_and_period primary key (queue, period, worker_id)
) with (fillfactor = 50);

comment on table  pgqueue.sleepers is 'Idle workers, by queue. Enqueue notifies channel pgqueue_<worker_id> of as many as it brings jobs.';
comment on column pgqueue.sleepers.queue is 'A queue that the worker serves.';
comment on column pgqueue.sleepers.period is 'The ten seconds in which it fell asleep or was last seen asleep.';
comment on column pgqueue.sleepers.worker_id is 'The worker.';
comment on column pgqueue.sleepers.slept_at is 'When it fell asleep or was last seen asleep; older than 25 s does not count; -infinity: awake.';

-- sql/1_tables/33_floors.sql
-- Proven lower bounds, so that no claim and no promotion walks over dead index entries.
-- How a bound is proven: upkeep/prove_floors.sql.

create table pgqueue.lane_floors (
    queue  text     collate "C" not null,
    floors bigint[] not null,
    constraint lane_floors_one_row_a_queue primary key (queue),
    constraint lane_floors_cover_every_lane check (cardinality(floors) = 20)
) with (fillfactor = 50);
comment on table  pgqueue.lane_floors is 'Per queue, the position below which no job of a lane is or will ever be.';
comment on column pgqueue.lane_floors.queue is 'The queue.';
comment on column pgqueue.lane_floors.floors is 'The floor of each lane: element lane + 1.';

create table pgqueue.floor_proofs (
    subject           text        collate "C" not null,
    next_position     bigint,
    next_run_at       timestamptz,
    proven_run_at     timestamptz,
    lockers           text[]      collate "C" not null,
    server_started_at timestamptz not null,
    constraint floor_proofs_one_row_a_table primary key (subject)
) with (fillfactor = 50);
comment on table  pgqueue.floor_proofs is 'Proofs under way: a bound that holds once the lockers of then have ended.';
comment on column pgqueue.floor_proofs.subject is 'ready_jobs or scheduled_jobs.';
comment on column pgqueue.floor_proofs.next_position is 'ready_jobs: the next value of pgqueue.positions, read before the lockers were.';
comment on column pgqueue.floor_proofs.next_run_at is 'scheduled_jobs: the clock before the lockers were read.';
comment on column pgqueue.floor_proofs.proven_run_at is 'scheduled_jobs: no job is or will ever be due before this; promotion starts here.';
comment on column pgqueue.floor_proofs.lockers is 'The virtual transactions that could still bring an older row.';
comment on column pgqueue.floor_proofs.server_started_at is 'The server start that the lockers'' names belong to; another start voids them.';

-- sql/1_tables/34_leadership.sql
-- Who led the last round of upkeep, and when. Correctness never rests on it.

create table pgqueue.leadership (
    supervisor_id bigint      not null,
    led_at        timestamptz not null,
    resumed_at    timestamptz not null,
    one           boolean     not null default true,
    constraint leadership_one_row primary key (one),
    constraint leadership_only_one check (one)
) with (fillfactor = 50);
insert into pgqueue.leadership (supervisor_id, led_at, resumed_at) values (0, '-infinity', '-infinity');

-- Empty when the server has recovered since a round was last led: from a crash, or as a standby that was promoted. Then commits
-- may have been forgotten, and no session holds a lock. An unlogged table is the one thing that every recovery leaves a trace in,
-- and the trace is seen without any right, on every provider's server.
create unlogged table pgqueue.recovery_seen (
    seen_at timestamptz not null
);

comment on table  pgqueue.recovery_seen is 'One row, unlogged: no recovery of the server since then. Empty: one that nobody has taken notice of.';
comment on column pgqueue.recovery_seen.seen_at is 'When the leader took notice of it.';

comment on table  pgqueue.leadership is 'One row: who led the last round of upkeep.';
comment on column pgqueue.leadership.supervisor_id is 'The supervisor that led it; 0: nobody yet, or it has resigned.';
comment on column pgqueue.leadership.led_at is 'When.';
comment on column pgqueue.leadership.resumed_at is 'When rounds began again after a gap in which nobody could beat, or after the server recovered: leases count from then.';
comment on column pgqueue.leadership.one is 'Always true: there is one row.';

-- sql/1_tables/35_waiters.sql
-- Who waits for the end of a job and wants a NOTIFY. Every ending looks whether there is anybody, so it must stay tiny.
-- A row counts for 35 s; a waiter renews it every 10 s, in a new period. Nothing deletes a row that still counts: so readers,
-- who look at the last periods alone, meet no dead versions, under a held snapshot neither. A waiter that dies leaves no more
-- than such a row.
-- Unlogged: after a crash of the server every waiter has lost its connection.

create unlogged table pgqueue.waiters (
    period  timestamptz not null,
    job_id  bigint      not null,
    channel text        collate "C" not null,
    constraint waiters_one_row_a_period primary key (period, job_id, channel)
);

comment on table  pgqueue.waiters is 'Who waits for the end of a job: endings notify the channel, with the job''s id.';
comment on column pgqueue.waiters.period is 'The ten seconds in which the waiter was last heard of.';
comment on column pgqueue.waiters.job_id is 'The job that is waited for.';
comment on column pgqueue.waiters.channel is 'The channel that the waiter listens on.';

-- sql/1_tables/36_schedules.sql
-- Schedules: stored rules by which jobs are enqueued again and again. Whoever leads upkeep computes the due times (in
-- Python) and ticks (upkeep/tick.sql). due_at is compared and set, so no due time is ever ticked twice.

create table pgqueue.schedules (
    name         text             collate "C" not null,
    owner        text             collate "C",
    task         text             collate "C" not null,
    args         jsonb            not null,
    queue        text             collate "C" not null,
    priority     smallint         not null,
    max_attempts smallint         not null,
    options      jsonb,
    cron         text,
    seconds      text             collate "C",
    every        double precision,
    at           timestamptz,
    at_startup   boolean          not null,
    tz           text             not null,
    starts_at    timestamptz,
    ends_at      timestamptz,
    jitter       double precision not null,
    grace        double precision not null,
    missed       text             collate "C" not null,
    missed_limit integer          not null,
    overlap      text             collate "C" not null,
    created_at   timestamptz      not null,
    changed_at   timestamptz      not null,
    paused_at    timestamptz,
    due_at       timestamptz      not null,
    problem      text,
    constraint schedules_one_row_a_name primary key (name),
    constraint schedules_one_timing_each check (num_nonnulls(cron, every, at, nullif(at_startup, false)) = 1),
    constraint schedules_known_policies check (missed in ('skip', 'once', 'all') and overlap in ('allow', 'skip', 'queue')
                                               and coalesce(seconds in ('first', 'last'), true))
);
create index schedules_due on pgqueue.schedules (due_at) where paused_at is null;

comment on table  pgqueue.schedules is 'Rules by which jobs are enqueued: by cron, at an interval, once, at a worker''s start.';
comment on column pgqueue.schedules.name is 'What it is called, by people and by its history.';
comment on column pgqueue.schedules.owner is 'The app whose code defines it, and removes it when the code no longer does; null: made by hand.';
comment on column pgqueue.schedules.task is 'The task of its jobs.';
comment on column pgqueue.schedules.args is 'The args of its jobs.';
comment on column pgqueue.schedules.queue is 'The queue of its jobs.';
comment on column pgqueue.schedules.priority is 'The priority of its jobs, 0 (first) to 9.';
comment on column pgqueue.schedules.max_attempts is 'Attempts that each of its jobs has.';
comment on column pgqueue.schedules.options is 'What few jobs need: tags, metadata, timeout, expiry; as for enqueue.';
comment on column pgqueue.schedules.cron is 'A cron expression of five fields, or of six when `seconds` says where the seconds are.';
comment on column pgqueue.schedules.seconds is 'Where the seconds of a cron expression of six fields are: first or last.';
comment on column pgqueue.schedules.every is 'Seconds between two due times, counted from starts_at or created_at.';
comment on column pgqueue.schedules.at is 'The only due time.';
comment on column pgqueue.schedules.at_startup is 'Due when a worker of its app starts; starts within `grace` of each other count as one.';
comment on column pgqueue.schedules.tz is 'The time zone of the cron expression.';
comment on column pgqueue.schedules.starts_at is 'No due time lies before it.';
comment on column pgqueue.schedules.ends_at is 'No due time lies after it.';
comment on column pgqueue.schedules.jitter is 'Seconds by which a job is delayed at the most, at random.';
comment on column pgqueue.schedules.grace is 'Seconds by which a due time may be late and still count as on time.';
comment on column pgqueue.schedules.missed is 'What becomes of due times that were missed: skip, once (the latest runs), all (the latest missed_limit run).';
comment on column pgqueue.schedules.missed_limit is 'How many missed due times run at the most, when all of them should.';
comment on column pgqueue.schedules.overlap is 'While its last job is unfinished: allow another, skip the due time, or queue one behind it.';
comment on column pgqueue.schedules.created_at is 'When it was made.';
comment on column pgqueue.schedules.changed_at is 'When its timing was last changed, or it was resumed: due times count after that.';
comment on column pgqueue.schedules.paused_at is 'Since when it does not run; null: not paused.';
comment on column pgqueue.schedules.due_at is 'Its next due time; -infinity: to be computed; infinity: never again.';
comment on column pgqueue.schedules.problem is 'Why it cannot run; null: it can.';

-- sql/1_tables/37_schedule_runs.sql
-- The history of schedules: a due time is in it once, whatever happened. The last 100 of each schedule, and all of the
-- last 7 days; tick forgets older ones.

create table pgqueue.schedule_runs (
    schedule text        collate "C" not null,
    due_at   timestamptz not null,
    ran_at   timestamptz not null,
    outcome  text        collate "C" not null,
    missed   integer     not null default 0,
    job_id   bigint,
    state    text        collate "C",
    constraint schedule_runs_one_a_due_time primary key (schedule, due_at)
);
create index schedule_runs_unsettled on pgqueue.schedule_runs (schedule, due_at) where state is null and job_id is not null;

comment on table  pgqueue.schedule_runs is 'What became of each due time of a schedule. One row a due time: that is what makes it run once.';
comment on column pgqueue.schedule_runs.schedule is 'The schedule.';
comment on column pgqueue.schedule_runs.due_at is 'The due time.';
comment on column pgqueue.schedule_runs.ran_at is 'When it was ticked.';
comment on column pgqueue.schedule_runs.outcome is 'enqueued; caught_up (late, by the policy for missed ones); missed; overlapped (the job before was unfinished); joined (a job that waits already stands for it too); by_hand.';
comment on column pgqueue.schedule_runs.missed is 'How many due times that did not run this row stands for, which have none of their own; of a missed one, itself too.';
comment on column pgqueue.schedule_runs.job_id is 'The job that it made, or met; null: none.';
comment on column pgqueue.schedule_runs.state is 'How that job ended; unknown: it was forgotten before that was noted; null: not known yet.';

-- sql/1_tables/38_next_look.sql
-- When the leader of upkeep looks at times again: whoever schedules something for earlier notifies it.
-- A sequence, because it is changed in place: visible to all at once, before the leader's look for what is due, and
-- without a dead version each time, over which every enqueue would walk under a held snapshot.
-- Unlogged: after a crash of the server it says 1, which is long ago, until the leader's next look.

create unlogged sequence pgqueue.next_look;
comment on sequence pgqueue.next_look is 'When the leader looks again, in milliseconds since 1970; in the past: it is at it, or is gone.';

-- sql/1_tables/39_stop_requests.sql
-- Workers that somebody wants to stop. Their supervisors read it with each round of upkeep, so it works behind any pooler.
-- In: stop_workers. Out: upkeep, when the worker is registered no more.

create table pgqueue.stop_requests (
    worker_id    bigint      not null,
    requested_at timestamptz not null,
    constraint stop_requests_one_row_a_worker primary key (worker_id)
);

comment on table  pgqueue.stop_requests is 'Workers that are to stop: they finish what they run, and are not started again.';
comment on column pgqueue.stop_requests.worker_id is 'The worker.';
comment on column pgqueue.stop_requests.requested_at is 'When it was asked for.';

-- sql/1_tables/40_depths.sql
-- How many jobs there are, counted by the leader every now and then, for views and thresholds: to count a backlog is a scan
-- of it, which no reader should make. Never read by what enqueues, claims or ends jobs.

create table pgqueue.depths (
    queue             text    collate "C" not null,
    task              text    collate "C" not null,
    ready             bigint  not null,
    scheduled         bigint  not null,
    blocked           bigint  not null,
    running           bigint  not null,
    dead              bigint  not null,
    oldest_ready_at   timestamptz,
    oldest_claimed_at timestamptz,
    rolled_up         bigint  not null default 0,
    carried           bigint  not null default 0,
    constraint depths_one_row_a_task primary key (queue, task)
) with (fillfactor = 50);  -- room for HOT updates in the page

comment on table  pgqueue.depths is 'Unfinished jobs and dead letters by queue and task, as last counted.';
comment on column pgqueue.depths.queue is 'The queue.';
comment on column pgqueue.depths.task is 'The task.';
comment on column pgqueue.depths.ready is 'Jobs that were ready.';
comment on column pgqueue.depths.scheduled is 'Jobs that waited for their time.';
comment on column pgqueue.depths.blocked is 'Jobs that waited for another one to end.';
comment on column pgqueue.depths.running is 'Jobs in the hands of a worker.';
comment on column pgqueue.depths.dead is 'Dead letters.';
comment on column pgqueue.depths.oldest_ready_at is 'When the ready job became due that has waited longest; null: none was ready.';
comment on column pgqueue.depths.oldest_claimed_at is 'When the running job was claimed that has run longest; null: none ran.';
comment on column pgqueue.depths.rolled_up is 'How many of its jobs were unfinished when a minute was last rolled up.';
comment on column pgqueue.depths.carried is 'Jobs that a minute seems to have lost, which the next one gives back: never above 0.';

create table pgqueue.depth_count (
    counted_at    timestamptz      not null,
    seconds       double precision not null,
    next_id       bigint           not null,
    next_position bigint           not null,
    is_moving     boolean          not null,
    one           boolean          not null default true,
    constraint depth_count_one_row primary key (one),
    constraint depth_count_only_one check (one)
) with (fillfactor = 50);
insert into pgqueue.depth_count (counted_at, seconds, next_id, next_position, is_moving) values ('-infinity', 0, 0, 0, true);

comment on table  pgqueue.depth_count is 'One row: the last count of depths.';
comment on column pgqueue.depth_count.counted_at is 'When it began: what was committed then is in it.';
comment on column pgqueue.depth_count.seconds is 'How long it took, in seconds. The next one comes after twenty times that at the earliest.';
comment on column pgqueue.depth_count.next_id is 'The next value of pgqueue.job_ids before it: nothing has changed while that stands,';
comment on column pgqueue.depth_count.next_position is 'and the next value of pgqueue.positions,';
comment on column pgqueue.depth_count.is_moving is 'unless jobs were ready or running, or have been cancelled or discarded since.';
comment on column pgqueue.depth_count.one is 'Always true: there is one row.';

-- sql/1_tables/41_rollups.sql
-- What happened, by minute, hour and day, for views: written by the leader (upkeep/roll_up.sql) from the history of minutes that
-- are over, never touched by what enqueues, claims or ends jobs.
--
-- Times are kept as histograms that can be added up: bucket 0 is up to 0.1 ms, and each of the others is a factor of 1.2
-- wide, up to 90 years in bucket 170. Only buckets that have something in them are stored. A percentile is the middle of
-- the bucket that it falls into: wrong by a tenth at the most.

create function pgqueue.bucket(seconds double precision)
returns smallint language sql immutable parallel safe
return least(170, ceil(ln(greatest(bucket.seconds, 0.0001) / 0.0001) / ln(1.2::double precision)))::smallint;
comment on function pgqueue.bucket(double precision) is 'Private. The bucket of the histograms of rollups that a time falls into.';

-- plpgsql, because a loop over some dozens of buckets takes a fifth of the time of a query over them.
create function pgqueue.percentile(buckets smallint[], counts bigint[], share double precision)
returns double precision language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    jobs bigint := 0;
    up_to bigint := 0;
begin
    for i in 1 .. cardinality(counts) loop
        jobs := jobs + counts[i];
    end loop;
    for i in 1 .. cardinality(buckets) loop
        up_to := up_to + counts[i];
        if up_to >= share * jobs then
            return 0.0001 * 1.2 ^ (buckets[i] - 0.5)::double precision;
        end if;
    end loop;
    return null;
end $$;
comment on function pgqueue.percentile(smallint[], bigint[], double precision) is
'Private. The time in seconds that this share of the jobs has not exceeded; null: there were none.';

create table pgqueue.rollups (
    period       text             collate "C" not null,
    bucket_at    timestamptz      not null,
    queue        text             collate "C" not null,
    task         text             collate "C" not null,
    enqueued     bigint           not null,
    completed    bigint           not null,
    cancelled    bigint           not null,
    failed       bigint           not null,
    dead         bigint           not null,
    depth        bigint           not null,
    targeted     bigint           not null,
    in_target    bigint           not null,
    wait_seconds double precision not null,
    run_seconds  double precision not null,
    wait_buckets smallint[]       not null,
    wait_counts  bigint[]         not null,
    run_buckets  smallint[]       not null,
    run_counts   bigint[]         not null,
    wait_p50     double precision generated always as (pgqueue.percentile(wait_buckets, wait_counts, 0.5)) stored,
    wait_p95     double precision generated always as (pgqueue.percentile(wait_buckets, wait_counts, 0.95)) stored,
    wait_p99     double precision generated always as (pgqueue.percentile(wait_buckets, wait_counts, 0.99)) stored,
    run_p50      double precision generated always as (pgqueue.percentile(run_buckets, run_counts, 0.5)) stored,
    run_p95      double precision generated always as (pgqueue.percentile(run_buckets, run_counts, 0.95)) stored,
    run_p99      double precision generated always as (pgqueue.percentile(run_buckets, run_counts, 0.99)) stored,
    constraint rollups_one_row_a_bucket_and_task primary key (period, bucket_at, queue, task),
    constraint rollups_known_periods check (period in ('minute', 'hour', 'day', 'last_hour')),
    constraint rollups_a_count_for_each_bucket check (cardinality(wait_buckets) = cardinality(wait_counts)
                                                      and cardinality(run_buckets) = cardinality(run_counts))
) with (fillfactor = 70);  -- the hour and the day under way are updated once a minute

comment on table  pgqueue.rollups is 'What happened to the jobs of a queue and task in a minute, hour or day (UTC), or in the hour up to the last minute. Only where something happened, or jobs were unfinished.';
comment on column pgqueue.rollups.period is 'minute (kept for 2 days), hour (for 100), day (for ever), or last_hour: the 60 minutes up to rollup_progress.rolled_up_to.';
comment on column pgqueue.rollups.bucket_at is 'When the period began.';
comment on column pgqueue.rollups.queue is 'The queue.';
comment on column pgqueue.rollups.task is 'The task; empty in rows of last_hour that stand for a whole queue.';
comment on column pgqueue.rollups.enqueued is 'Jobs that were enqueued, or replayed: the change of depth plus what ended. Derived, for an enqueue counts nothing; over several minutes it is right, in one it may be a few seconds off.';
comment on column pgqueue.rollups.completed is 'Jobs that completed.';
comment on column pgqueue.rollups.cancelled is 'Jobs that were cancelled, discarded dead letters among them.';
comment on column pgqueue.rollups.failed is 'Attempts that failed or crashed, the last ones among them.';
comment on column pgqueue.rollups.dead is 'Jobs that became dead letters.';
comment on column pgqueue.rollups.depth is 'Unfinished jobs at its end, as counted last.';
comment on column pgqueue.rollups.targeted is 'Completed jobs whose queue had a target_wait when they were rolled up.';
comment on column pgqueue.rollups.in_target is 'Those of them that had not waited longer than that.';
comment on column pgqueue.rollups.wait_seconds is 'Seconds that the completed jobs had waited together, each from due to the claim of its last attempt.';
comment on column pgqueue.rollups.run_seconds is 'Seconds that the last attempts of the completed jobs took together, each from claim to end.';
comment on column pgqueue.rollups.wait_buckets is 'The histogram of waits: its buckets that hold jobs, in ascending order,';
comment on column pgqueue.rollups.wait_counts is 'and how many completed jobs each of them holds.';
comment on column pgqueue.rollups.run_buckets is 'The histogram of run times: as wait_buckets,';
comment on column pgqueue.rollups.run_counts is 'and how many completed jobs each of them holds.';
comment on column pgqueue.rollups.wait_p50 is 'The median wait in seconds; null: nothing completed.';
comment on column pgqueue.rollups.wait_p95 is 'Seconds that 95% of the waits did not exceed.';
comment on column pgqueue.rollups.wait_p99 is 'Seconds that 99% of the waits did not exceed.';
comment on column pgqueue.rollups.run_p50 is 'The median run time in seconds; null: nothing completed.';
comment on column pgqueue.rollups.run_p95 is 'Seconds that 95% of the run times did not exceed.';
comment on column pgqueue.rollups.run_p99 is 'Seconds that 99% of the run times did not exceed.';

create table pgqueue.rollup_progress (
    rolled_up_to      timestamptz not null,
    proven_to         timestamptz not null,
    next_to           timestamptz,
    writers           text[]      collate "C" not null,
    server_started_at timestamptz not null,
    one               boolean     not null default true,
    constraint rollup_progress_one_row primary key (one),
    constraint rollup_progress_only_one check (one)
) with (fillfactor = 50);
insert into pgqueue.rollup_progress (rolled_up_to, proven_to, writers, server_started_at)
values ('-infinity', '-infinity', '{}', '-infinity');

comment on table  pgqueue.rollup_progress is 'One row: up to where the history has been rolled up, and how far that may go.';
comment on column pgqueue.rollup_progress.rolled_up_to is 'The end of the last minute that was rolled up.';
comment on column pgqueue.rollup_progress.proven_to is 'Every ending before this is there to be read.';
comment on column pgqueue.rollup_progress.next_to is 'A clock that becomes proven_to once the writers have ended; null: no proof is under way.';
comment on column pgqueue.rollup_progress.writers is 'The virtual transactions that could still bring an ending before next_to.';
comment on column pgqueue.rollup_progress.server_started_at is 'The server start that the writers'' names belong to; another start voids the proof.';
comment on column pgqueue.rollup_progress.one is 'Always true: there is one row.';

-- sql/1_tables/42_failure_groups.sql
-- Failed attempts by what caused them, for views: written by the leader with the rollups (upkeep/roll_up.sql).

create table pgqueue.failure_groups (
    fingerprint   text        collate "C" not null,
    queue         text        collate "C" not null,
    task          text        collate "C" not null,
    error         text        not null,
    message       text        not null,
    job_id        bigint      not null,
    first_seen_at timestamptz not null,
    last_seen_at  timestamptz not null,
    failures      bigint      not null,
    dead          bigint      not null,
    constraint failure_groups_one_row_a_cause_and_task primary key (fingerprint, queue, task)
) with (fillfactor = 70);

comment on table  pgqueue.failure_groups is 'Failed attempts that have the same fingerprint, by queue and task; forgotten 100 days after the last.';
comment on column pgqueue.failure_groups.fingerprint is 'The same for errors that come from the same place; where there is none, the class of the error.';
comment on column pgqueue.failure_groups.queue is 'The queue.';
comment on column pgqueue.failure_groups.task is 'The task.';
comment on column pgqueue.failure_groups.error is 'The class of the error.';
comment on column pgqueue.failure_groups.message is 'The text of the latest one, 1,000 characters of it at the most.';
comment on column pgqueue.failure_groups.job_id is 'The job of the latest one.';
comment on column pgqueue.failure_groups.first_seen_at is 'When the first attempt failed.';
comment on column pgqueue.failure_groups.last_seen_at is 'When the latest attempt failed.';
comment on column pgqueue.failure_groups.failures is 'How many attempts have failed.';
comment on column pgqueue.failure_groups.dead is 'How many of them made a dead letter.';

-- sql/1_tables/43_retention.sql
-- How far the history has been trimmed: what retention has looked at, and when it has to look again. Written by the leader
-- (upkeep/trim_history.sql), never touched by what enqueues, claims or ends jobs.

create table pgqueue.trims (
    relation    text        collate "C" not null,
    day         date,
    due_at      timestamptz not null default '-infinity',
    next_block  bigint      not null default 0,
    rules       jsonb,
    next_due_at timestamptz not null default 'infinity',
    seconds     double precision not null default 0,
    constraint trims_one_row_a_table primary key (relation)
) with (fillfactor = 50);

comment on table  pgqueue.trims is 'A row for each table that is trimmed: the partitions of finished_jobs, dead_letters, audit.';
comment on column pgqueue.trims.relation is 'The table, in schema pgqueue.';
comment on column pgqueue.trims.day is 'The UTC day of a partition; null: no partition of a day.';
comment on column pgqueue.trims.due_at is 'When the next pass over it begins; infinity: when the settings of a queue change.';
comment on column pgqueue.trims.next_block is 'Where the pass goes on: the blocks before it have been looked at.';
comment on column pgqueue.trims.rules is 'By which queue and state, before which time rows go in this pass; null: no pass is under way.';
comment on column pgqueue.trims.next_due_at is 'When the first of the rows will go that this pass has left there.';
comment on column pgqueue.trims.seconds is 'How long this pass has taken so far, in seconds.';

create table pgqueue.retention (
    settings text        not null,
    due_at   timestamptz not null,
    one      boolean     not null default true,
    constraint retention_one_row primary key (one),
    constraint retention_only_one check (one)
) with (fillfactor = 50);
insert into pgqueue.retention (settings, due_at) values ('', '-infinity');

comment on table  pgqueue.retention is 'One row: when something is to be dropped or trimmed.';
comment on column pgqueue.retention.settings is 'What the queues kept when that was reckoned: others make it due at once.';
comment on column pgqueue.retention.due_at is 'When something may be due again.';
comment on column pgqueue.retention.one is 'Always true: there is one row.';

-- sql/1_tables/50_audit.sql
-- What operators did: a row for each call that changed something, in its transaction. Kept for 400 days (upkeep/trim_history.sql).

create table pgqueue.audit (
    id       bigint      not null generated always as identity,
    acted_at timestamptz not null,
    role     text        not null,
    actor    text,
    verb     text        collate "C" not null,
    target   text        collate "C",
    jobs     integer,
    job_ids  bigint[],
    filter   text,
    details  jsonb,
    constraint audit_one_row_a_call primary key (id)
);

comment on table  pgqueue.audit is 'What operators did, oldest first: cancel, replay, pause, ... One row a call that changed something.';
comment on column pgqueue.audit.id is 'The order in which they did it.';
comment on column pgqueue.audit.acted_at is 'When.';
comment on column pgqueue.audit.role is 'Who: the role that had logged in.';
comment on column pgqueue.audit.actor is 'Who, in its own words: the setting pgqueue.actor; the command says user@host.';
comment on column pgqueue.audit.verb is 'What: the function that was called.';
comment on column pgqueue.audit.target is 'The queue, schedule or worker; null: jobs.';
comment on column pgqueue.audit.jobs is 'How many jobs it changed; null: it is not about jobs.';
comment on column pgqueue.audit.job_ids is 'The first 20 of them.';
comment on column pgqueue.audit.filter is 'How they were chosen, in the caller''s words: the setting pgqueue.filter; null: by id.';
comment on column pgqueue.audit.details is 'What else was said: a reason, the settings of a queue. Never a job''s args.';
comment on sequence pgqueue.audit_id_seq is 'The ids of pgqueue.audit.';

-- sql/2_functions/operator/cancel.sql
-- Cancels jobs in any state. One that waits or is dead is cancelled at once; one that runs is asked for, its worker told.
-- Called by operators and producers, in their transaction.
-- Locks: the jobs' rows table by table, by id, those of running_jobs in the order in which they lie, as endings do; then those of
-- free_keys (sql/README.md: the order of locks). Index: the primary keys.
--
-- A job moves while it is looked for, forwards and back; so the tables are looked through again for what was not found.
-- The row of a running job is locked while the request is written: an ending that came first is seen here, and one
-- that comes after sees the request.
create function pgqueue.cancel(ids bigint[], reason text default 'cancelled')
returns table (id bigint, outcome text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    today constant date := pgqueue.history_day('finished_jobs');
    missing bigint[] := array(select distinct i.id from unnest(cancel.ids) as i (id) order by i.id);
    ended bigint[];
    all_ended bigint[] := '{}';
    asked bigint[];
    all_asked bigint[] := '{}';
    held_keys jsonb;
    held_now jsonb;
begin
    for round in 1 .. 3 loop
        exit when cardinality(missing) = 0;
        with scheduled as (
            delete from pgqueue.scheduled_jobs as j where j.id = any (missing)
            returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                      j.unique_key, j.options
        ), ready as (
            delete from pgqueue.ready_jobs as j where j.id = any (missing)
            returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                      j.unique_key, j.options
        ), dead as (
            delete from pgqueue.dead_letters as j where j.id = any (missing)
            returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                      j.unique_key, j.options, j.worker_id, j.claimed_at
        ), blocked as (
            delete from pgqueue.blocked_jobs as j where j.id = any (missing)
            returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                      j.unique_key, j.options
        ), gone as (
            select s.*, null::bigint as worker_id, null::timestamptz as claimed_at, true as holds_key from scheduled as s
            union all
            select r.*, null, null, true from ready as r
            union all
            select d.*, false from dead as d
            union all
            select b.*, null, null, false from blocked as b
        ), history as (
            insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane,
                                               attempt, max_attempts, crashes, queue, task, state, args, unique_key,
                                               options, reason)
            select g.id, g.worker_id, g.run_at, g.created_at, g.claimed_at, clock_timestamp(), today, g.lane, g.attempt,
                   g.max_attempts, g.crashes, g.queue, g.task, 'cancelled', g.args, g.unique_key, g.options, coalesce(cancel.reason, 'cancelled')
              from gone as g
        ), answered as (
            delete from pgqueue.cancel_requests as c where c.job_id = any (missing) and c.job_id in (select g.id from gone as g)
        )
        select coalesce(array_agg(g.id), '{}'), jsonb_agg(jsonb_build_array(g.task, g.unique_key, g.id))
                   filter (where g.holds_key and g.unique_key is not null)
          into ended, held_now from gone as g;
        held_keys := coalesce(held_keys || held_now, held_now, held_keys);
        return query select e.id, 'cancelled' from unnest(ended) as e (id);
        with running as (
            select r.id, r.worker_id, r.lease from pgqueue.running_jobs as r
             where r.id = any (missing) order by r.ctid for update
        ), requested as (
            insert into pgqueue.cancel_requests (job_id, worker_id, lease, requested_at, reason)
            select r.id, r.worker_id, r.lease, clock_timestamp(), coalesce(cancel.reason, 'cancelled') from running as r
            on conflict (job_id) do update
               set worker_id = excluded.worker_id, lease = excluded.lease, requested_at = excluded.requested_at,
                   reason = excluded.reason
        )
        select coalesce(array_agg(r.id), '{}') into asked from running as r;
        perform pg_notify('pgqueue_' || w.worker_id, 'cancel')
           from (select distinct c.worker_id from pgqueue.cancel_requests as c where c.job_id = any (asked)) as w
          where current_setting('pgqueue.notify', true) is distinct from 'off';
        return query select a.id, 'asked' from unnest(asked) as a (id);
        missing := array(select m.id from unnest(missing) as m (id) where m.id <> all (ended || asked));
        all_ended := all_ended || ended;
        all_asked := all_asked || asked;
    end loop;
    if held_keys is not null then  -- when no job is waited for any more
        perform pgqueue.free_keys(held_keys, with_periods => true);
    end if;
    if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
        perform pgqueue.tell_waiters(all_ended);
    end if;
    perform pgqueue.audited('cancel', ids => all_ended || all_asked, details => jsonb_build_object('reason', cancel.reason));
    return query select m.id, 'finished' from unnest(missing) as m (id)
                  where exists (select from pgqueue.finished_jobs as f where f.id = m.id);
end $$;
comment on function pgqueue.cancel(bigint[], text) is
'Cancels jobs. A row a job that exists: cancelled (it waited, or was dead), asked (it runs; its worker is told, and it ends as cancelled, or as completed when it finishes first) or finished (it had ended before).';

-- sql/2_functions/operator/cancel_matching.sql
-- Cancels jobs that wait or run by filter, the oldest first; at most max_jobs, so call it again while it returns as many.
-- Called by operators. Locks: those of cancel. Scans the tables of the states asked for.
create function pgqueue.cancel_matching(
    of_queue text default null, of_task text default null, of_tag text default null, of_state text default null,
    reason text default 'cancelled', max_jobs integer default 1000, created_after timestamptz default null,
    created_before timestamptz default null, of_fingerprint text default null, of_args jsonb default null
) returns table (id bigint, outcome text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    chosen bigint[];
    outer_filter constant text := current_setting('pgqueue.filter', true);
begin
    if num_nonnulls(of_queue, of_task, of_tag, of_state, created_after, created_before, of_fingerprint, of_args) = 0 then
        raise exception using errcode = 'PQ001', message = 'cancel_matching: no filter given',
            hint = 'Give at least one of of_queue, of_task, of_tag, of_state, created_after, created_before, of_fingerprint and of_args.';
    end if;
    if of_state is not null and of_state not in ('scheduled', 'ready', 'blocked', 'running') then
        raise exception using errcode = 'PQ001', message = format('of_state: %s is not one that can be cancelled', pgqueue.as_given(of_state)),
            hint = 'scheduled, ready, blocked or running. Dead letters are discarded.';
    end if;
    perform pgqueue.reject_search('max_jobs', max_jobs, of_args);
    chosen := array(
        select j.id
          from (select s.id, s.queue, s.task, s.created_at, s.args, s.options, 'scheduled' as state from pgqueue.scheduled_jobs as s
                union all
                select r.id, r.queue, r.task, r.created_at, r.args, r.options, 'ready' from pgqueue.ready_jobs as r
                union all
                select b.id, b.queue, b.task, b.created_at, b.args, b.options, 'blocked' from pgqueue.blocked_jobs as b
                union all
                select a.id, a.queue, a.task, a.created_at, a.args, a.options, 'running' from pgqueue.running_jobs as a
                 where not exists (select from pgqueue.cancel_requests as c where c.job_id = a.id and c.lease = a.lease)
               ) as j
         where (cancel_matching.of_state is null or j.state = cancel_matching.of_state)
           and (of_fingerprint is null or j.id in (select f.job_id from pgqueue.job_failures as f where f.fingerprint = of_fingerprint))
           and pgqueue.matches(j.queue, j.task, j.created_at, j.args, j.options,
                               of_queue, of_task, of_tag, created_after, created_before, of_args)
         order by j.id
         limit cancel_matching.max_jobs);
    perform set_config('pgqueue.filter', jsonb_strip_nulls(jsonb_build_object(
        'of_queue', of_queue, 'of_task', of_task, 'of_tag', of_tag, 'of_state', of_state, 'created_after', created_after,
        'created_before', created_before, 'of_fingerprint', of_fingerprint,
        'of_args', (select jsonb_agg(a.name) from jsonb_object_keys(of_args) as a (name))))::text, true);
    return query select c.id, c.outcome from pgqueue.cancel(chosen, cancel_matching.reason) as c;
    perform set_config('pgqueue.filter', coalesce(outer_filter, ''), true);
end $$;
comment on function pgqueue.cancel_matching(text, text, text, text, text, integer, timestamptz, timestamptz, text, jsonb) is
'Cancels jobs that wait or run and match every filter given, at most max_jobs of them. Rows as of cancel().';

-- sql/2_functions/operator/delete_jobs.sql
-- Deletes jobs in any state but running, with their failures, reports and steps: nothing of them is left. Called by
-- operators; who wants a record of the end cancels or discards instead.
-- Locks: the jobs' rows, by id, as cancel does, those of finished_jobs in the order in which they lie; those of free_keys. Index: the primary keys, finished_jobs_by_id, job_failures_by_job, job_reports_by_job.
--
-- As in cancel: a job moves while it is looked for, so the tables are looked through again for what was not found.
create function pgqueue.delete_jobs(ids bigint[])
returns table (id bigint, outcome text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan set max_parallel_workers_per_gather = 0
set synchronize_seqscans = off
as $$
#variable_conflict use_column
declare
    missing bigint[] := array(select distinct i.id from unnest(delete_jobs.ids) as i (id) where i.id is not null order by i.id);
    gone_now bigint[];
    unfinished bigint[];
    gone bigint[] := '{}';
    running bigint[] := '{}';
    held_keys jsonb;
    held_now jsonb;
begin
    for round in 1 .. 3 loop
        exit when cardinality(missing) = 0;
        -- Whatever the plan below, in the order of cancel and discard: table by table, by id.
        perform from pgqueue.scheduled_jobs as j where j.id = any (missing) order by j.id for update;
        perform from pgqueue.ready_jobs as j where j.id = any (missing) order by j.id for update;
        perform from pgqueue.dead_letters as j where j.id = any (missing) order by j.id for update;
        perform from pgqueue.blocked_jobs as j where j.id = any (missing) order by j.id for update;
        with scheduled as (
            delete from pgqueue.scheduled_jobs as j where j.id = any (missing) returning j.id, j.task, j.unique_key
        ), ready as (
            delete from pgqueue.ready_jobs as j where j.id = any (missing) returning j.id, j.task, j.unique_key
        ), blocked as (
            delete from pgqueue.blocked_jobs as j where j.id = any (missing) returning j.id
        ), dead as (
            delete from pgqueue.dead_letters as j where j.id = any (missing) returning j.id
        ), finished as (
            -- between as well: ids that lie together, as those of a step do, are a few ranges of the BRIN index
            delete from pgqueue.finished_jobs as j
             where j.id between missing[1] and missing[cardinality(missing)] and j.id = any (missing)
            returning j.id
        ), waited as (
            select s.id, s.task, s.unique_key from scheduled as s
            union all
            select r.id, r.task, r.unique_key from ready as r
            union all
            select b.id, null, null from blocked as b
        )
        select array(select w.id from waited as w), array(select d.id from dead as d union all select f.id from finished as f),
               (select jsonb_agg(jsonb_build_array(w.task, w.unique_key, w.id)) from waited as w where w.unique_key is not null)
          into unfinished, gone_now, held_now;
        held_keys := coalesce(held_keys || held_now, held_now, held_keys);
        if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
            perform pgqueue.tell_waiters(unfinished);
        end if;
        gone := gone || unfinished || gone_now;
        running := running || array(select r.id from pgqueue.running_jobs as r where r.id = any (missing));
        missing := array(select m.id from unnest(missing) as m (id) where m.id <> all (gone || running) order by m.id);
    end loop;
    if held_keys is not null then  -- when no job is waited for any more
        perform pgqueue.free_keys(held_keys, with_periods => true);
    end if;
    delete from pgqueue.job_failures as f where f.job_id = any (gone);
    delete from pgqueue.job_reports as r where r.job_id = any (gone);
    delete from pgqueue.job_steps as s where s.job_id = any (gone);
    perform pgqueue.audited('delete_jobs', ids => gone);
    return query select g.id, 'deleted' from unnest(gone) as g (id)
                 union all
                 select r.id, 'running' from unnest(running) as r (id);
end $$;
comment on function pgqueue.delete_jobs(bigint[]) is
'Deletes jobs, and all that is on record of them. A row a job that exists: deleted, or running (it is left alone: cancel it first). An idempotency key that it took stays taken until it expires.';

-- sql/2_functions/operator/discard.sql
-- Moves dead letters to the history as cancelled, reason discarded. Called by operators.
-- Locks: the letters' rows, by id, as cancel does. Index: dead_letters_one_row_a_job.
create function pgqueue.discard(ids bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    today constant date := pgqueue.history_day('finished_jobs');
    discarded bigint[];
begin
    with gone as (
        delete from pgqueue.dead_letters as d
         where d.id = any (discard.ids)
        returning d.id, d.worker_id, d.run_at, d.created_at, d.claimed_at, d.lane, d.attempt, d.max_attempts, d.crashes,
                  d.queue, d.task, d.args, d.unique_key, d.options
    ), history as (
        insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane, attempt,
                                           max_attempts, crashes, queue, task, state, args, unique_key, options, reason)
        select g.id, g.worker_id, g.run_at, g.created_at, g.claimed_at, clock_timestamp(), today, g.lane, g.attempt,
               g.max_attempts, g.crashes, g.queue, g.task, 'cancelled', g.args, g.unique_key, g.options, 'discarded'
          from gone as g
    )
    select coalesce(array_agg(g.id), '{}') into discarded from gone as g;
    perform pgqueue.audited('discard', ids => discarded);
    return discarded;
end $$;
comment on function pgqueue.discard(bigint[]) is
'Moves dead letters to the history as cancelled, reason discarded. Returns the ids that were.';

-- sql/2_functions/operator/find_dead.sql
-- Reads dead letters by filter, newest first. Called by operators: dead list, show, and before replay and discard.
-- Locks: none. Index: dead_letters_one_row_a_job for ids, else dead_letters_by_time.
create function pgqueue.find_dead(
    of_ids bigint[] default null, of_queue text default null, of_task text default null, of_reason text default null,
    of_error text default null, died_after timestamptz default null, died_before timestamptz default null,
    max_rows integer default 100, of_tag text default null, of_fingerprint text default null, of_args jsonb default null
) returns table (id bigint, queue text, task text, priority smallint, reason text, error text, message text, attempt smallint,
                 max_attempts smallint, crashes smallint, created_at timestamptz, died_at timestamptz, args jsonb,
                 unique_key text, options jsonb, errors jsonb, fingerprint text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
    perform pgqueue.reject_search('max_rows', max_rows, of_args);
    return query
    select d.id, d.queue, d.task, (d.lane / 2)::smallint, d.reason, d.error, d.message, d.attempt, d.max_attempts, d.crashes,
           d.created_at, d.died_at, d.args, d.unique_key, d.options, d.errors, d.fingerprint
      from pgqueue.dead_letters as d
     where (find_dead.of_ids is null or d.id = any (find_dead.of_ids))
       and pgqueue.matches(d.queue, d.task, d.created_at, d.args, d.options,
                           of_queue, of_task, of_tag, null, null, of_args)
       and (find_dead.of_fingerprint is null or d.fingerprint = find_dead.of_fingerprint)
       and (find_dead.of_reason is null or d.reason = find_dead.of_reason)
       and (find_dead.of_error is null or strpos(lower(d.error || ': ' || coalesce(d.message, '')), lower(find_dead.of_error)) > 0)
       and (find_dead.died_after is null or d.died_at >= find_dead.died_after)
       and (find_dead.died_before is null or d.died_at < find_dead.died_before)
     order by d.died_at desc, d.id desc
     limit find_dead.max_rows;
end $$;
comment on function pgqueue.find_dead(bigint[], text, text, text, text, timestamptz, timestamptz, integer, text, text, jsonb) is
'Dead letters that match every filter given, newest first. `of_error`: part of the error''s class or text, any case. of_fingerprint: that of the last error. of_args: part of its args, as by @>.';

-- sql/2_functions/operator/find_jobs.sql
-- The ids of jobs in any state by filter, newest first. Called by operators: jobs list, and before what they do by filter.
-- Locks: none. Index: the primary keys, backwards; the history is read a day after the other until there are enough. By
-- fingerprint the failures are scanned first.
create function pgqueue.find_jobs(
    of_states text[] default null, of_queue text default null, of_task text default null, of_tag text default null,
    max_rows integer default 100, created_after timestamptz default null, created_before timestamptz default null,
    of_fingerprint text default null, of_args jsonb default null
) returns table (id bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    wanted constant text[] := coalesce(of_states, '{scheduled,ready,blocked,running,completed,cancelled,dead}');
    failed bigint[];
    finished bigint[] := '{}';
    of_day date;
    found_here bigint[];
begin
    if not wanted <@ '{scheduled,ready,blocked,running,completed,cancelled,dead}'::text[] then
        raise exception using errcode = 'PQ001', message = format('of_states: %s: not all of them are states', pgqueue.as_given(wanted::text, 80)),
            hint = 'scheduled, ready, blocked, running, completed, cancelled, dead.';
    end if;
    perform pgqueue.reject_search('max_rows', max_rows, of_args);
    if of_fingerprint is not null then
        failed := array(select distinct f.job_id from pgqueue.job_failures as f where f.fingerprint = of_fingerprint);
    end if;
    if wanted && '{completed,cancelled}' then
        for of_day in
            select coalesce(to_date(substring(c.relname from '_(\d{8})$'), 'YYYYMMDD'), '-infinity') as day
              from pg_catalog.pg_inherits as i join pg_catalog.pg_class as c on c.oid = i.inhrelid
             where i.inhparent = 'pgqueue.finished_jobs'::regclass
             order by day desc
        loop
            found_here := array(
                select f.id from pgqueue.finished_jobs as f
                 where f.day = of_day and f.state = any (wanted) and (failed is null or f.id = any (failed))
                   and pgqueue.matches(f.queue, f.task, f.created_at, f.args, f.options,
                                       of_queue, of_task, of_tag, created_after, created_before, of_args)
                 order by f.id desc limit max_rows);
            finished := finished || found_here;
            exit when cardinality(finished) >= max_rows;
        end loop;
    end if;
    return query
    select j.id
      from ((select f.id from unnest(finished) as f (id))
            union all
            (select r.id from pgqueue.ready_jobs as r
              where 'ready' = any (wanted) and (failed is null or r.id = any (failed))
                and pgqueue.matches(r.queue, r.task, r.created_at, r.args, r.options,
                                    of_queue, of_task, of_tag, created_after, created_before, of_args)
              order by r.id desc limit max_rows)
            union all
            (select s.id from pgqueue.scheduled_jobs as s
              where 'scheduled' = any (wanted) and (failed is null or s.id = any (failed))
                and pgqueue.matches(s.queue, s.task, s.created_at, s.args, s.options,
                                    of_queue, of_task, of_tag, created_after, created_before, of_args)
              order by s.id desc limit max_rows)
            union all
            (select b.id from pgqueue.blocked_jobs as b
              where 'blocked' = any (wanted) and (failed is null or b.id = any (failed))
                and pgqueue.matches(b.queue, b.task, b.created_at, b.args, b.options,
                                    of_queue, of_task, of_tag, created_after, created_before, of_args)
              order by b.id desc limit max_rows)
            union all
            (select a.id from pgqueue.running_jobs as a
              where 'running' = any (wanted) and (failed is null or a.id = any (failed))
                and pgqueue.matches(a.queue, a.task, a.created_at, a.args, a.options,
                                    of_queue, of_task, of_tag, created_after, created_before, of_args)
              order by a.id desc limit max_rows)
            union all
            (select d.id from pgqueue.dead_letters as d
              where 'dead' = any (wanted) and (failed is null or d.id = any (failed) or d.fingerprint = of_fingerprint)
                and pgqueue.matches(d.queue, d.task, d.created_at, d.args, d.options,
                                    of_queue, of_task, of_tag, created_after, created_before, of_args)
              order by d.id desc limit max_rows)) as j
     order by j.id desc
     limit max_rows;
end $$;
comment on function pgqueue.find_jobs(text[], text, text, text, integer, timestamptz, timestamptz, text, jsonb) is
'The ids of jobs that match every filter given, newest first. of_states: any of scheduled, ready, blocked, running, completed, cancelled, dead. created_after, created_before: when it was enqueued. of_fingerprint: an attempt of it failed so. of_args: part of its args, as by @>.';

-- What look() leaves out: a job's args and options, its failures and its reports. Called by operators: jobs show.
-- Locks: none. Index: as of look.
create function pgqueue.job_record(id bigint)
returns table (args jsonb, options jsonb, unique_key text, failures jsonb, reports jsonb)
language plpgsql stable security definer rows 1
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    return query
    with found as (
        select r.args, r.options, r.unique_key, null::jsonb as errors from pgqueue.ready_jobs as r where r.id = job_record.id
        union all
        select s.args, s.options, s.unique_key, null from pgqueue.scheduled_jobs as s where s.id = job_record.id
        union all
        select b.args, b.options, b.unique_key, null from pgqueue.blocked_jobs as b where b.id = job_record.id
        union all
        select r.args, r.options, r.unique_key, null from pgqueue.running_jobs as r where r.id = job_record.id
        union all
        select d.args, d.options, d.unique_key, d.errors from pgqueue.dead_letters as d where d.id = job_record.id
        union all
        select f.args, f.options, f.unique_key, null from pgqueue.finished_jobs as f where f.id = job_record.id
    )
    select j.args, j.options, j.unique_key, coalesce(j.errors, pgqueue.earlier_failures(job_record.id)),
           (select coalesce(jsonb_agg(jsonb_build_object('attempt', e.attempt, 'worker_id', e.worker_id, 'reported_at', e.reported_at,
                                          'progress', e.progress, 'lines', e.lines) order by e.reported_at), '[]')
              from pgqueue.job_reports as e where e.job_id = job_record.id)
      from found as j;
end $$;
comment on function pgqueue.job_record(bigint) is
'A job''s args and options, its failed attempts, and the progress and log lines that its attempts left; no row: it is not on record.';

-- sql/2_functions/operator/find_waiting.sql
-- Reads jobs that wait, with their args: the ready ones in the order in which they will be claimed, the scheduled ones by
-- their time, the blocked ones. Called by operators and tests. due_seconds is by the database's clock, less than 0: past.
-- Locks: none. Index: ready_jobs_lane for a queue, scheduled_jobs_due.
create function pgqueue.find_waiting(of_queue text default null, of_task text default null, max_rows integer default 1000)
returns table (id bigint, state text, queue text, task text, priority smallint, attempt smallint, max_attempts smallint,
               created_at timestamptz, run_at timestamptz, due_seconds double precision, args jsonb, unique_key text,
               options jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
    perform pgqueue.reject_search('max_rows', max_rows, null);
    return query
    (select r.id, 'ready', r.queue, r.task, (r.lane / 2)::smallint, r.attempt, r.max_attempts, r.created_at, r.run_at,
            extract(epoch from r.run_at - clock_timestamp())::double precision, r.args, r.unique_key, r.options
       from pgqueue.ready_jobs as r
      where (find_waiting.of_queue is null or r.queue = find_waiting.of_queue)
        and (find_waiting.of_task is null or r.task = find_waiting.of_task)
      order by r.queue, r.lane, r.position
      limit find_waiting.max_rows)
    union all
    (select s.id, 'scheduled', s.queue, s.task, (s.lane / 2)::smallint, s.attempt, s.max_attempts, s.created_at, s.run_at,
            extract(epoch from s.run_at - clock_timestamp())::double precision, s.args, s.unique_key, s.options
       from pgqueue.scheduled_jobs as s
      where (find_waiting.of_queue is null or s.queue = find_waiting.of_queue)
        and (find_waiting.of_task is null or s.task = find_waiting.of_task)
      order by s.run_at, s.id
      limit find_waiting.max_rows)
    union all
    (select b.id, 'blocked', b.queue, b.task, (b.lane / 2)::smallint, b.attempt, b.max_attempts, b.created_at, b.run_at,
            extract(epoch from b.run_at - clock_timestamp())::double precision, b.args, b.unique_key, b.options
       from pgqueue.blocked_jobs as b
      where (find_waiting.of_queue is null or b.queue = find_waiting.of_queue)
        and (find_waiting.of_task is null or b.task = find_waiting.of_task)
      order by b.id
      limit find_waiting.max_rows)
    limit find_waiting.max_rows;
end $$;
comment on function pgqueue.find_waiting(text, text, integer) is
'Jobs that wait, with their args: ready ones in the order of claiming, scheduled ones by their time, then blocked ones.';

-- sql/2_functions/operator/lane_heads.sql
-- The first job of each lane that has one: who waits, and since when. Called by operators: doctor, which looks for lanes that
-- others keep from being served. Locks: none. Index: ready_jobs_lane, from the floors on: twenty look-ups a queue.
create function pgqueue.lane_heads()
returns table (queue text, priority smallint, run_at timestamptz, waited_seconds double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    return query
    select f.queue, (c.number / 2)::smallint, head.run_at, extract(epoch from clock_timestamp() - head.run_at)::double precision
      from pgqueue.lane_floors as f
     cross join lateral (select n.floor, n.number - 1 as number from unnest(f.floors) with ordinality as n (floor, number)) as c
     cross join lateral (select r.run_at from pgqueue.ready_jobs as r
                          where r.queue = f.queue and r.lane = c.number and r.position >= c.floor
                          order by r.position limit 1) as head
     order by f.queue, c.number;
end $$;
comment on function pgqueue.lane_heads() is
'The first job of each lane that has one, with its queue and priority, and for how long it has waited. A priority may come twice: what came back is a lane of its own.';

-- sql/2_functions/operator/pause.sql
-- Stops and starts the claiming of a queue, at once, on every worker; running jobs go on. Called by operators.
-- A pause that has an end is ended by the leader of upkeep (upkeep/resume_due.sql): claim looks at paused_at alone.
-- Locks: the queue's row. Index: queues_one_row_a_name.
create function pgqueue.pause(queue text, until timestamptz default null)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if until is not null and not (until > clock_timestamp() and isfinite(until)) then
        raise exception using errcode = 'PQ001', message = format('until: %s is not ahead', until),
            hint = 'Without until the queue is paused until somebody resumes it.';
    end if;
    perform pgqueue.reject_job('-', '{}', coalesce(pause.queue, ''), 5, null, null, 1, null, null, null);
    insert into pgqueue.queues as q (name, paused_at, resumes_at) values (pause.queue, now(), until)
    on conflict (name) do update set paused_at = coalesce(q.paused_at, excluded.paused_at), resumes_at = excluded.resumes_at;
    perform pgqueue.audited('pause', pause.queue, details => jsonb_build_object('until', until));
end $$;
comment on function pgqueue.pause(text, timestamptz) is
'No job of the queue is claimed until resume, or until that time. Running jobs go on. Once more: until then instead.';

create function pgqueue.resume(queue text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgqueue.queues as q set paused_at = null, resumes_at = null
     where q.name = resume.queue and q.paused_at is not null;
    if found then
        perform pgqueue.audited('resume', resume.queue);
    end if;
    perform pgqueue.notify_sleepers(resume.queue, 1000);
end $$;
comment on function pgqueue.resume(text) is 'Jobs of the queue are claimed again.';

-- sql/2_functions/operator/replay.sql
-- Runs dead letters again, with attempts from 0. Called by operators.
-- A letter whose unique_key is held by another unfinished job stays where it is. Its keys are not made anew from edited args.
-- Locks: the letters' rows, their keys. Index: dead_letters_one_row_a_job.
create function pgqueue.replay(ids bigint[], new_args jsonb default null, changed_args jsonb default null)
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    letter record;
    replayed bigint[] := '{}';
begin
    if jsonb_typeof(new_args) <> 'object' or jsonb_typeof(changed_args) <> 'object' then
        raise exception using errcode = 'PQ003',
            message = format('replay: expected a JSON object of args, got a JSON %s',
                             jsonb_typeof(case when jsonb_typeof(new_args) <> 'object' then new_args else changed_args end)),
            hint = 'Name each argument: {"user_id": 7}.';
    end if;
    if changed_args is not null and exists (select from pgqueue.dead_letters as d
                                             where d.id = any (replay.ids) and d.args ? 'pgqueue.encrypted') then
        raise exception using errcode = 'PQ003', message = 'replay: some of these jobs have encrypted args, which cannot be changed one by one',
            hint = 'Give all args anew, encrypted: pgqueue dead replay ID --args JSON, where the keys are.';
    end if;
    for letter in
        select d.id, d.task, d.queue,
               case when d.options #> '{unique, period}' is null then d.unique_key end as unique_key
          from pgqueue.dead_letters as d
         where d.id = any (replay.ids) order by d.task, d.unique_key, d.id for update skip locked
    loop
        continue when letter.unique_key is not null
            and (select k.outcome from pgqueue.take_unique_key(letter.task, letter.unique_key, letter.id) as k) <> 'created';
        with gone as (
            delete from pgqueue.dead_letters as d where d.id = letter.id
            returning d.id, d.created_at, d.lane, d.max_attempts, d.queue, d.task, d.args, d.unique_key, d.options
        )
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select g.id, now(), g.created_at, g.lane, 0, g.max_attempts, 0, g.queue, g.task,
               coalesce(new_args, g.args) || coalesce(changed_args, '{}'), g.unique_key, g.options
          from gone as g;
        replayed := replayed || letter.id;
        perform pgqueue.notify_sleepers(letter.queue, 1);
    end loop;
    perform pgqueue.audited('replay', ids => replayed, details => jsonb_build_object('edited_args',
        (select jsonb_agg(a.name order by a.name) from jsonb_object_keys(coalesce(new_args, '{}') || coalesce(changed_args, '{}')) as a (name))));
    return replayed;
end $$;
comment on function pgqueue.replay(bigint[], jsonb, jsonb) is
'Makes dead letters ready again, attempts from 0. Returns the ids that were replayed; the others are no dead letters, or their unique_key is held. new_args: instead of their args; changed_args: these of them, the others stay.';

-- sql/2_functions/operator/reseal.sql
-- How much is sealed with which key: args, kept results and steps of tasks that encrypt (pgqueue/encryption.py).
-- Called by operators: keys list, and keys rotate, before an old key is thrown away.
-- Locks: none. Index: none; it reads every job, the history too.
create function pgqueue.count_sealed()
returns table (place text, key_id text, sealed bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
    select s.place, split_part(s.value ->> 'pgqueue.encrypted', '.', 2) as key_id, count(*) as sealed
      from (select 'ready' as place, r.args as value from pgqueue.ready_jobs as r
            union all select 'scheduled', w.args from pgqueue.scheduled_jobs as w
            union all select 'blocked', b.args from pgqueue.blocked_jobs as b
            union all select 'running', a.args from pgqueue.running_jobs as a
            union all select 'dead', d.args from pgqueue.dead_letters as d
            union all select 'schedules', c.args from pgqueue.schedules as c
            union all select 'steps', t.result from pgqueue.job_steps as t
            union all select 'finished', f.args from pgqueue.finished_jobs as f
            union all select 'results', f.result from pgqueue.finished_jobs as f) as s
     where s.value ? 'pgqueue.encrypted'
     group by 1, 2 order by 1, 2;
$$;
comment on function pgqueue.count_sealed() is
'How many args, results and steps are encrypted with which key, by place: ready, scheduled, blocked, running, dead, schedules, steps, finished (args of the history), results. Reads every job.';

-- What is sealed with another key than `newest`, in the order of ids (of a schedule: names), behind the last one seen.
-- Called by operators: keys rotate. Places: ready, scheduled, blocked, dead, schedules, steps.
-- Locks: none. Index: the primary keys.
create function pgqueue.find_sealed(
    place text, newest text, after_id bigint default 0, after_name text default '', max_rows integer default 500
) returns table (id bigint, name text, task text, queue text, value jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
begin
    case place
        when 'ready' then
            return query select r.id, '', r.task, r.queue, r.args from pgqueue.ready_jobs as r
             where r.id > after_id and r.args ? 'pgqueue.encrypted'
               and split_part(r.args ->> 'pgqueue.encrypted', '.', 2) is distinct from newest order by r.id limit greatest(max_rows, 0);
        when 'scheduled' then
            return query select s.id, '', s.task, s.queue, s.args from pgqueue.scheduled_jobs as s
             where s.id > after_id and s.args ? 'pgqueue.encrypted'
               and split_part(s.args ->> 'pgqueue.encrypted', '.', 2) is distinct from newest order by s.id limit greatest(max_rows, 0);
        when 'blocked' then
            return query select b.id, '', b.task, b.queue, b.args from pgqueue.blocked_jobs as b
             where b.id > after_id and b.args ? 'pgqueue.encrypted'
               and split_part(b.args ->> 'pgqueue.encrypted', '.', 2) is distinct from newest order by b.id limit greatest(max_rows, 0);
        when 'dead' then
            return query select d.id, '', d.task, d.queue, d.args from pgqueue.dead_letters as d
             where d.id > after_id and d.args ? 'pgqueue.encrypted'
               and split_part(d.args ->> 'pgqueue.encrypted', '.', 2) is distinct from newest order by d.id limit greatest(max_rows, 0);
        when 'schedules' then
            return query select 0::bigint, s.name, s.task, s.queue, s.args from pgqueue.schedules as s
             where s.name > after_name collate "C" and s.args ? 'pgqueue.encrypted'
               and split_part(s.args ->> 'pgqueue.encrypted', '.', 2) is distinct from newest order by s.name limit greatest(max_rows, 0);
        when 'steps' then
            return query select t.job_id, t.name, j.task, j.queue, t.result
              from pgqueue.job_steps as t
              join lateral (select r.task, r.queue from pgqueue.ready_jobs as r where r.id = t.job_id
                            union all select s.task, s.queue from pgqueue.scheduled_jobs as s where s.id = t.job_id
                            union all select a.task, a.queue from pgqueue.running_jobs as a where a.id = t.job_id
                            union all select d.task, d.queue from pgqueue.dead_letters as d where d.id = t.job_id) as j on true
             where (t.job_id, t.name) > (after_id, after_name collate "C") and t.result ? 'pgqueue.encrypted'
               and split_part(t.result ->> 'pgqueue.encrypted', '.', 2) is distinct from newest order by t.job_id, t.name limit greatest(max_rows, 0);
        else
            raise exception using errcode = 'PQ001', message = format('place: there is nothing to seal anew in %s', pgqueue.as_given(place)),
                hint = 'One of ready, scheduled, blocked, dead, schedules, steps.';
    end case;
end $$;
comment on function pgqueue.find_sealed(text, text, bigint, text, integer) is
'What is encrypted with another key than the newest, in one place: ready, scheduled, blocked, dead, schedules or steps; at most max_rows, behind after_id and after_name.';

-- Puts what was sealed with the newest key in the place of what was sealed with an older one, where that is still there.
-- Called by operators: keys rotate. `items`: a JSON array of {id, name, old, new}, as find_sealed has given them.
-- Locks: the rows that nobody else holds; the others stay as they are, for the next round. Index: the primary keys.
create function pgqueue.reseal(place text, items jsonb)
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    resealed integer;
    wrong text;
begin
    if items is null or jsonb_typeof(items) <> 'array' then
        raise exception using errcode = 'PQ001', message = 'items: expected a JSON array',
            hint = 'Of objects {id, name, old, new}; old is what pgqueue.find_sealed gave.';
    end if;
    case place
        when 'ready' then
            with free as (
                select r.id, g.new from pgqueue.ready_jobs as r
                  join jsonb_to_recordset(items) as g (id bigint, old jsonb, new jsonb) on g.id = r.id and g.old = r.args
                 where g.new ? 'pgqueue.encrypted' order by r.id for update of r skip locked)
            update pgqueue.ready_jobs as r set args = f.new from free as f where f.id = r.id;
        when 'scheduled' then
            with free as (
                select s.id, g.new from pgqueue.scheduled_jobs as s
                  join jsonb_to_recordset(items) as g (id bigint, old jsonb, new jsonb) on g.id = s.id and g.old = s.args
                 where g.new ? 'pgqueue.encrypted' order by s.id for update of s skip locked)
            update pgqueue.scheduled_jobs as s set args = f.new from free as f where f.id = s.id;
        when 'blocked' then
            with free as (
                select b.id, g.new from pgqueue.blocked_jobs as b
                  join jsonb_to_recordset(items) as g (id bigint, old jsonb, new jsonb) on g.id = b.id and g.old = b.args
                 where g.new ? 'pgqueue.encrypted' order by b.id for update of b skip locked)
            update pgqueue.blocked_jobs as b set args = f.new from free as f where f.id = b.id;
        when 'dead' then
            with free as (
                select d.id, g.new from pgqueue.dead_letters as d
                  join jsonb_to_recordset(items) as g (id bigint, old jsonb, new jsonb) on g.id = d.id and g.old = d.args
                 where g.new ? 'pgqueue.encrypted' order by d.id for update of d skip locked)
            update pgqueue.dead_letters as d set args = f.new from free as f where f.id = d.id;
        when 'schedules' then
            with free as (
                select s.name, g.new from pgqueue.schedules as s
                  join jsonb_to_recordset(items) as g (name text, old jsonb, new jsonb) on g.name = s.name and g.old = s.args
                 where g.new ? 'pgqueue.encrypted' order by s.name for update of s skip locked)
            update pgqueue.schedules as s set args = f.new from free as f where f.name = s.name;
        when 'steps' then
            with free as (
                select t.job_id, t.name, g.new from pgqueue.job_steps as t
                  join jsonb_to_recordset(items) as g (id bigint, name text, old jsonb, new jsonb)
                    on g.id = t.job_id and g.name = t.name and g.old = t.result
                 where g.new ? 'pgqueue.encrypted' order by t.job_id, t.name for update of t skip locked)
            update pgqueue.job_steps as t set result = f.new from free as f where f.job_id = t.job_id and f.name = t.name;
        else
            raise exception using errcode = 'PQ001', message = format('place: there is nothing to seal anew in %s', pgqueue.as_given(place)),
                hint = 'One of ready, scheduled, blocked, dead, schedules, steps.';
    end case;
    get diagnostics resealed = row_count;
    if resealed > 0 then
        perform pgqueue.audited('reseal', place, details => jsonb_build_object('resealed', resealed));
    end if;
    return resealed;
exception
    when data_exception then
        get stacked diagnostics wrong = message_text;
        raise exception using errcode = 'PQ001', message = format('items: cannot be read: %s', wrong),
            hint = 'Objects {id, name, old, new}; old is what pgqueue.find_sealed gave.';
end $$;
comment on function pgqueue.reseal(text, jsonb) is
'Replaces what was encrypted with an older key, where it is still as it was found and nobody holds it; returns how many. items: [{id, name, old, new}] as of pgqueue.find_sealed().';

-- sql/2_functions/operator/retry.sql
-- Makes scheduled jobs ready now: those that were put off, and those that wait for another attempt. Called by operators.
-- Locks: the jobs' rows (skip locked: one that is being promoted is ready anyway). Index: scheduled_jobs_one_row_a_job.
create function pgqueue.retry(ids bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    retried bigint[];
    lines text[];
begin
    with gone as (
        delete from pgqueue.scheduled_jobs as j
         where j.ctid = any (array(
             select s.ctid from pgqueue.scheduled_jobs as s where s.id = any (retry.ids) for update skip locked))
        returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                  j.unique_key, j.options
    ), ready as (
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select g.id, clock_timestamp(), g.created_at, g.lane, g.attempt, g.max_attempts, g.crashes, g.queue, g.task, g.args,
               g.unique_key, g.options
          from gone as g order by g.run_at, g.id
    )
    select coalesce(array_agg(g.id order by g.id), '{}'), array_agg(g.queue) into retried, lines from gone as g;
    perform pgqueue.notify_sleepers(l.queue, l.jobs::integer)
       from (select q.queue, count(*) as jobs from unnest(lines) as q (queue) group by q.queue) as l;
    perform pgqueue.audited('retry', ids => retried);
    return retried;
end $$;
comment on function pgqueue.retry(bigint[]) is
'Makes scheduled jobs ready now. Returns the ids that were; the others are not scheduled. By filter: select pgqueue.retry(array(select id from pgqueue.find_jobs(of_states => ''{scheduled}'', of_task => ''charge'', max_rows => 1000)))';

-- sql/2_functions/operator/schedule.sql
-- Makes or changes a schedule by hand: no app's code removes it or takes it over. Called by operators and applications.
-- Locks: the schedule's row. Index: schedules_one_row_a_name.
create function pgqueue.schedule(
    name         text,
    task         text,
    args         jsonb            default null,
    cron         text             default null,
    every        double precision default null,
    at           timestamptz      default null,
    tz           text             default null,
    seconds      text             default null,
    starts_at    timestamptz      default null,
    ends_at      timestamptz      default null,
    jitter       double precision default null,
    grace        double precision default null,
    missed       text             default null,
    missed_limit integer          default null,
    overlap      text             default null,
    queue        text             default null,
    priority     integer          default null,
    max_attempts integer          default null,
    options      jsonb            default null
) returns text language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    outcome text;
begin
    if not at > clock_timestamp()  -- unless it was said before: a script may be run again
       and not exists (select from pgqueue.schedules as s where s.name = schedule.name and s.at = schedule.at) then
        raise exception using errcode = 'PQ001', message = format('schedule %s: at: %s has passed', left(name, 100), at),
            hint = 'For a job now, call pgqueue.enqueue.';
    end if;
    outcome := pgqueue.put_schedule(name, null, jsonb_build_object(
        'task', task, 'args', args, 'cron', cron, 'every', every, 'at', at, 'tz', tz, 'seconds', seconds,
        'starts_at', starts_at, 'ends_at', ends_at, 'jitter', jitter, 'grace', grace, 'missed', missed,
        'missed_limit', missed_limit, 'overlap', overlap, 'queue', queue, 'priority', priority,
        'max_attempts', max_attempts, 'options', options));
    if outcome <> 'unchanged' then
        perform pgqueue.audited('schedule', schedule.name, details => jsonb_build_object('outcome', outcome, 'task', task,
            'cron', cron, 'every', every, 'at', at));
    end if;
    return outcome;
end $$;
comment on function pgqueue.schedule(text, text, jsonb, text, double precision, timestamptz, text, text, timestamptz, timestamptz, double precision, double precision, text, integer, text, text, integer, integer, jsonb) is
'Makes or changes a schedule, with one of cron, every (seconds) and at. Returns created, changed or unchanged. NULL means the default. select pgqueue.schedule(''clean-up'', ''clean_up'', cron => ''0 3 * * *'', tz => ''Europe/Paris'')';

-- Called by operators and applications. Its jobs stay; its history goes. Locks: its rows. Index: the primary keys.
create function pgqueue.unschedule(name text)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from pgqueue.schedules as s where s.name = unschedule.name;
    if not found then
        return false;
    end if;
    delete from pgqueue.schedule_runs as r where r.schedule = unschedule.name;
    perform pgqueue.audited('unschedule', unschedule.name);
    return true;
end $$;
comment on function pgqueue.unschedule(text) is 'Deletes a schedule and its history. Returns whether there was one.';

-- Called by operators. Locks: its row. Index: schedules_one_row_a_name.
create function pgqueue.pause_schedule(name text)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgqueue.schedules as s set paused_at = coalesce(s.paused_at, clock_timestamp()) where s.name = pause_schedule.name;
    if not found then
        return false;
    end if;
    perform pgqueue.audited('pause_schedule', pause_schedule.name);
    return true;
end $$;
comment on function pgqueue.pause_schedule(text) is 'Pauses a schedule: its due times pass, and are not missed. Returns whether there is one.';

-- Called by operators. Due times count from now on. Locks: its row. Index: schedules_one_row_a_name.
create function pgqueue.resume_schedule(name text)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgqueue.schedules as s
       set paused_at = null, problem = null, changed_at = clock_timestamp(),
           due_at = case when s.at_startup then 'infinity' else '-infinity' end::timestamptz
     where s.name = resume_schedule.name and (s.paused_at is not null or s.problem is not null);
    if found then
        perform pgqueue.wake_leader('-infinity');
        perform pgqueue.audited('resume_schedule', resume_schedule.name);
        return true;
    end if;
    return exists (select from pgqueue.schedules as s where s.name = resume_schedule.name);
end $$;
comment on function pgqueue.resume_schedule(text) is 'Resumes a schedule that was paused, or had a problem. Returns whether there is one.';

-- Called by operators: a run beside those that are due, also of a paused schedule. Locks: its row, those of enqueue.
create function pgqueue.run_schedule(name text, out job_id bigint, out outcome text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    held pgqueue.schedules;
begin
    select * into held from pgqueue.schedules as s where s.name = run_schedule.name for update;
    if found then
        select r.job_id, r.outcome into job_id, outcome from pgqueue.run_due(held, clock_timestamp(), 'by_hand', 0, false) as r;
        perform pgqueue.audited('run_schedule', run_schedule.name, details => jsonb_build_object('job_id', job_id, 'outcome', outcome));
    end if;
end $$;
comment on function pgqueue.run_schedule(text) is
'Enqueues a schedule''s job now, beside its due times. Returns the job and by_hand; or the unfinished one that its overlap policy keeps, and overlapped or joined; nulls: there is no such schedule.';

-- What views leave out of a schedule. Called by operators. Locks: none. Index: schedules_one_row_a_name.
create function pgqueue.schedule_record(name text)
returns table (args jsonb, options jsonb) language sql stable security definer rows 1
set search_path = pg_catalog, pg_temp
as $$ select s.args, s.options from pgqueue.schedules as s where s.name = schedule_record.name $$;
comment on function pgqueue.schedule_record(text) is 'The args and options of a schedule''s jobs; no row: there is no such schedule.';

-- sql/2_functions/operator/set_queue.sql
-- Changes the settings of a queue: those that are given; null: the default again. Called by operators.
-- Running workers are told: what is theirs (worker_limit, timeout) they have at once, or else with their next round of upkeep.
-- max_attempts is for jobs that are enqueued from now on.
-- Locks: the queue's row. Index: queues_one_row_a_name.
create function pgqueue.set_queue(queue text, settings jsonb)
returns jsonb language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    known constant text[] := '{worker_limit,max_attempts,timeout,target_wait,keep_completed,keep_cancelled,keep_dead,max_completed,max_cancelled,max_dead,max_depth,max_oldest,max_failure_ratio,tolerated_dead}';
    wanted pgqueue.queues;
    setting record;
    broken text;
begin
    perform pgqueue.reject_job('-', '{}', coalesce(set_queue.queue, ''), 5, null, null, 1, null, null, null);
    if settings is null or jsonb_typeof(settings) <> 'object' then
        raise exception using errcode = 'PQ001', message = 'settings: expected a JSON object',
            hint = 'Name each setting: {"worker_limit": 5}.';
    end if;
    insert into pgqueue.queues (name) values (set_queue.queue) on conflict on constraint queues_one_row_a_name do nothing;
    select * into wanted from pgqueue.queues as q where q.name = set_queue.queue for update;
    for setting in select s.key, s.value from jsonb_each(settings) as s loop
        if setting.key <> all (known) then
            raise exception using errcode = 'PQ001', message = format('settings: %s is none', regexp_replace(left(setting.key, 40), '[[:cntrl:]]', '?', 'g')),
                hint = array_to_string(known, ', ') || '.';
        end if;
        begin
            wanted := jsonb_populate_record(wanted, jsonb_build_object(setting.key, case
                when setting.key like 'keep%' and jsonb_typeof(setting.value) = 'number'
                then to_jsonb(make_interval(secs => (setting.value #>> '{}')::double precision))
                when setting.key like 'keep%' and setting.value = '"none"' then '"0"'
                else setting.value end));
        exception when data_exception or datatype_mismatch then
            raise exception using errcode = 'PQ001', message = format('%s: %s', setting.key, regexp_replace(left(sqlerrm, 200), '[[:cntrl:]]', '?', 'g')),
                hint = 'keep_*: seconds, an interval such as "7 days", or "none"; timeout, target_wait, max_oldest: seconds; max_failure_ratio: 0 to 1; the others: a number; null: the default.';
        end;
    end loop;
    begin
        update pgqueue.queues as q
           set worker_limit = wanted.worker_limit, max_attempts = wanted.max_attempts, timeout = wanted.timeout,
               target_wait = wanted.target_wait, keep_completed = wanted.keep_completed,
               keep_cancelled = wanted.keep_cancelled, keep_dead = wanted.keep_dead, max_completed = wanted.max_completed,
               max_cancelled = wanted.max_cancelled, max_dead = wanted.max_dead, max_depth = wanted.max_depth,
               max_oldest = wanted.max_oldest, max_failure_ratio = wanted.max_failure_ratio, tolerated_dead = wanted.tolerated_dead
         where q.name = set_queue.queue;
    exception when check_violation then
        get stacked diagnostics broken = constraint_name;
        raise exception using errcode = 'PQ001', message = format('settings of %s: %s', set_queue.queue, replace(broken, '_', ' ')),
            hint = 'Limits and attempts are 1 or more, times are positive, a ratio is 0 to 1, what is kept is 0 or more.';
    end;
    if wanted.max_attempts is not null then
        perform nextval('pgqueue.attempts_set');  -- before the commit: whoever looks too early finds no change yet
    end if;
    perform pgqueue.audited('set_queue', set_queue.queue, details => settings);
    perform pg_notify('pgqueue_upkeep', 'queues')
      where settings ?| '{worker_limit,timeout}' and current_setting('pgqueue.notify', true) is distinct from 'off';
    return jsonb_strip_nulls(to_jsonb(wanted) - '{name,paused_at,resumes_at}'::text[]);
end $$;
comment on function pgqueue.set_queue(text, jsonb) is
'Changes settings of a queue, those that are given; null: the default. worker_limit, max_attempts, max_depth, max_completed, max_cancelled, max_dead, tolerated_dead: numbers; max_failure_ratio: 0 to 1; timeout, target_wait, max_oldest: seconds; keep_completed, keep_cancelled, keep_dead: seconds, an interval, or none. Returns all that are set. select pgqueue.set_queue(''mail'', ''{"worker_limit": 5, "keep_completed": "1 day"}'')';

-- How many unfinished jobs a queue has now. Called by operators: queues drain, which looks every now and then.
-- Locks: none. Index: ready_jobs_lane; scans the other tables.
create function pgqueue.count_queue(queue text, out ready bigint, out scheduled bigint, out blocked bigint, out running bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
begin
    select (select count(*) from pgqueue.ready_jobs as j where j.queue = count_queue.queue),
           (select count(*) from pgqueue.scheduled_jobs as j where j.queue = count_queue.queue),
           (select count(*) from pgqueue.blocked_jobs as j where j.queue = count_queue.queue),
           (select count(*) from pgqueue.running_jobs as j where j.queue = count_queue.queue)
      into ready, scheduled, blocked, running;
end $$;
comment on function pgqueue.count_queue(text) is
'How many unfinished jobs a queue has now, counted; pgqueue_bi.queue_health has what was counted a moment ago, at no cost.';

-- sql/2_functions/operator/stats.sql
-- What became of jobs in the last so many seconds, by queue or by queue and task. Called by operators: the command stats.
-- Of minutes up to three hours back, of hours up to 14 days, else of days: the span begins with a whole one, and ends with the
-- last minute that was rolled up. Here, for histograms are merged for it, and views have none.
-- Locks: none. Index: rollups_one_row_a_bucket_and_task.
create function pgqueue.stats(last_seconds double precision default 3600, by_task boolean default false)
returns table (queue text, task text, from_at timestamptz, until_at timestamptz, enqueued bigint, completed bigint,
               cancelled bigint, failed bigint, dead bigint, wait_avg_seconds double precision, wait_p50_seconds double precision,
               wait_p95_seconds double precision, wait_p99_seconds double precision, run_avg_seconds double precision,
               run_p50_seconds double precision, run_p95_seconds double precision, run_p99_seconds double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set timezone = 'UTC' set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
    perform pgqueue.checked_seconds('last_seconds', last_seconds);
    return query
    with span as materialized (
        select s.period, p.rolled_up_to as until_at,
               date_trunc(s.period, p.rolled_up_to - make_interval(secs => stats.last_seconds)) as from_at
          from pgqueue.rollup_progress as p
         cross join (select case when stats.last_seconds <= 10800 then 'minute'
                                 when stats.last_seconds <= 14 * 86400 then 'hour'
                                 else 'day' end) as s (period)
    ), parts as materialized (
        select r.queue, case when stats.by_task then r.task else '' end as task, r.enqueued, r.completed, r.cancelled, r.failed,
               r.dead, r.wait_seconds, r.run_seconds, r.wait_buckets, r.wait_counts, r.run_buckets, r.run_counts
          from pgqueue.rollups as r
         where r.period = (select s.period from span as s) and r.bucket_at >= (select s.from_at from span as s)
           and r.bucket_at < (select s.until_at from span as s)
    ), sums as (
        select p.queue, p.task, sum(p.enqueued)::bigint as enqueued, sum(p.completed)::bigint as completed,
               sum(p.cancelled)::bigint as cancelled, sum(p.failed)::bigint as failed, sum(p.dead)::bigint as dead,
               sum(p.wait_seconds) as wait_seconds, sum(p.run_seconds) as run_seconds
          from parts as p group by p.queue, p.task
    ), waits as (
        select b.queue, b.task, array_agg(b.bucket order by b.bucket) as buckets, array_agg(b.jobs order by b.bucket) as counts
          from (select p.queue, p.task, h.bucket, sum(h.jobs)::bigint as jobs
                  from parts as p cross join unnest(p.wait_buckets, p.wait_counts) as h (bucket, jobs)
                 group by p.queue, p.task, h.bucket) as b
         group by b.queue, b.task
    ), runs as (
        select b.queue, b.task, array_agg(b.bucket order by b.bucket) as buckets, array_agg(b.jobs order by b.bucket) as counts
          from (select p.queue, p.task, h.bucket, sum(h.jobs)::bigint as jobs
                  from parts as p cross join unnest(p.run_buckets, p.run_counts) as h (bucket, jobs)
                 group by p.queue, p.task, h.bucket) as b
         group by b.queue, b.task
    ), shown as (
        select s.*, coalesce(w.buckets, '{}') as wait_buckets, coalesce(w.counts, '{}') as wait_counts,
               coalesce(r.buckets, '{}') as run_buckets, coalesce(r.counts, '{}') as run_counts
          from sums as s
          left join waits as w on w.queue = s.queue and w.task = s.task
          left join runs as r on r.queue = s.queue and r.task = s.task
         where s.enqueued + s.completed + s.cancelled + s.failed > 0
    )
    select s.queue, nullif(s.task, ''), n.from_at, n.until_at, s.enqueued, s.completed, s.cancelled, s.failed, s.dead,
           s.wait_seconds / nullif(s.completed, 0), pgqueue.percentile(s.wait_buckets, s.wait_counts, 0.5),
           pgqueue.percentile(s.wait_buckets, s.wait_counts, 0.95), pgqueue.percentile(s.wait_buckets, s.wait_counts, 0.99),
           s.run_seconds / nullif(s.completed, 0), pgqueue.percentile(s.run_buckets, s.run_counts, 0.5),
           pgqueue.percentile(s.run_buckets, s.run_counts, 0.95), pgqueue.percentile(s.run_buckets, s.run_counts, 0.99)
      from shown as s cross join span as n
     order by s.queue, s.task;
end $$;
comment on function pgqueue.stats(double precision, boolean) is
'What became of jobs in the last so many seconds, by queue, or by queue and task: counts, and how long the completed ones had waited and run; from from_at (a whole minute; over three hours back a whole hour, over 14 days a UTC day) to until_at, the last minute that was rolled up. No row where nothing happened. Percentiles are wrong by a tenth at the most.';

-- sql/2_functions/operator/stop_workers.sql
-- Asks workers to stop: each claims nothing more, finishes what it runs within its drain limit, and is not started again.
-- Called by operators. Their supervisors are told, and look with each round of upkeep.
-- Locks: none but the inserts'. Index: workers_one_row_a_process.
create function pgqueue.stop_workers(ids bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    worker record;
    asked bigint[] := '{}';
begin
    for worker in
        select w.id, w.supervisor_id, w.host, w.pid from pgqueue.workers as w
         where w.id = any (stop_workers.ids) order by w.id
    loop
        insert into pgqueue.stop_requests (worker_id, requested_at) values (worker.id, clock_timestamp())
        on conflict on constraint stop_requests_one_row_a_worker do nothing;
        asked := asked || worker.id;
        perform pgqueue.audited('stop_workers', worker.id::text,
                                details => jsonb_build_object('host', worker.host, 'pid', worker.pid));
        perform pg_notify('pgqueue_upkeep_' || worker.supervisor_id, 'workers')
          where current_setting('pgqueue.notify', true) is distinct from 'off';
    end loop;
    return asked;
end $$;
comment on function pgqueue.stop_workers(bigint[]) is
'Asks workers to finish what they run and to stop. Returns the ids that are registered. When all workers of a supervisor have stopped it ends, with exit code 0: whatever keeps that process may start it again.';

-- sql/2_functions/producer/enqueue.sql
-- Inserts one job, in the caller's transaction: the job exists if and only if that transaction commits.
-- Called by producers, through any driver or plain SQL. NULL means the default, for every argument but task.
-- options.unique says what the unique_key means: {"scope": "unfinished" | "waiting"} or {"period": seconds}, "on_conflict":
-- "keep" | "replace" | "debounce" | "raise_priority" | "follow_up", "max_delay": seconds. How: shared/take_keys.sql.
-- Locks: RowExclusive on ready_jobs or scheduled_jobs, for a key those of take_unique_key. Index: the primary keys.
create function pgqueue.enqueue(
    task            text,
    args            jsonb            default '{}',
    queue           text             default 'default',
    priority        integer          default 5,
    run_at          timestamptz      default null,
    delay           double precision default null,
    max_attempts    integer          default null,
    unique_key      text             default null,
    idempotency_key text             default null,
    options         jsonb            default null,
    out id          bigint,
    out created     boolean,
    out outcome     text
) language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    own_id constant bigint := nextval('pgqueue.job_ids');
    line constant text := coalesce(queue, 'default');
    lane constant smallint := case when priority between 0 and 9 then 2 * priority + 1 else 11 end;
    due timestamptz := run_at;
    how jsonb;
begin
    if args is null then
        args := '{}';
    end if;
    if max_attempts is null and pg_sequence_last_value('pgqueue.attempts_set') is not null then
        max_attempts := (select q.max_attempts from pgqueue.queues as q where q.name = line);
    end if;
    if not (coalesce(length(task) between 1 and 200 and jsonb_typeof(args) = 'object', false)
            and length(line) between 1 and 100 and line !~ '[[:cntrl:]*"'']' and task !~ '[[:cntrl:]]'
            and coalesce(priority between 0 and 9, true) and coalesce(max_attempts between 1 and 32767, true)
            and delay is null and run_at is null and unique_key is null and idempotency_key is null and options is null)
    then
        perform pgqueue.reject_job(task, args, queue, priority, run_at, delay, max_attempts,
                                   unique_key, idempotency_key, options);
        if unique_key is not null or idempotency_key is not null then
            enqueue.id := own_id;
            enqueue.outcome := 'created';
            if idempotency_key is not null then
                enqueue.id := pgqueue.take_idempotency_key(task, idempotency_key, own_id);
            end if;
            if enqueue.id <> own_id then
                enqueue.outcome := 'kept';
            elsif unique_key is not null then
                how := options -> 'unique';
                if how is null then
                    insert into pgqueue.unique_keys (kind, task, key, job_id)
                    values ('unique', enqueue.task, enqueue.unique_key, own_id)
                    on conflict on constraint unique_keys_one_job_a_key do nothing;
                    if not found then
                        select k.holder, k.outcome into id, outcome
                          from pgqueue.take_unique_key(task, unique_key, own_id) as k;
                    end if;
                else
                    select k.holder, k.outcome into id, outcome
                      from pgqueue.take_unique_key(task, unique_key, own_id, how, pgqueue.job_to_be(
                               own_id, coalesce(due, clock_timestamp() + make_interval(secs => delay)), priority,
                               max_attempts, queue, task, args, unique_key, options)) as k;
                    options := pgqueue.options_to_store(options);
                end if;
                if enqueue.id <> own_id and idempotency_key is not null then
                    -- the same enqueue, repeated, means the same job
                    update pgqueue.unique_keys as k set job_id = enqueue.id
                     where k.kind = 'idempotency' and k.task = enqueue.task and k.key = enqueue.idempotency_key;
                end if;
            end if;
            if enqueue.outcome <> 'created' then
                enqueue.created := enqueue.outcome = 'follow_up';
                return;
            end if;
        end if;
        if delay is not null then
            due := clock_timestamp() + make_interval(secs => delay);
        end if;
        if due is not null then
            -- The clock is read by the statement that holds the lock: no job is ever scheduled for the past.
            insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue,
                                                task, args, unique_key, options)
            select own_id, due, now(), lane, 0, coalesce(enqueue.max_attempts, 5), 0, line, enqueue.task, enqueue.args,
                   enqueue.unique_key, enqueue.options
             where due > clock_timestamp();
            if found then
                perform pgqueue.wake_leader(due);
                enqueue.id := own_id;
                enqueue.created := true;
                enqueue.outcome := 'created';
                return;
            end if;
        end if;
    end if;
    insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                    unique_key, options)
    values (own_id, coalesce(due, now()), now(), lane, 0, coalesce(enqueue.max_attempts, 5), 0, line, enqueue.task,
            enqueue.args, enqueue.unique_key, enqueue.options);
    -- A statement of its own, after the insert: its snapshot sees every worker that fell asleep before (sleep.sql).
    if current_setting('transaction_isolation') <> 'read committed'
       or exists (select from pgqueue.sleepers as s
                   where s.queue = line and s.period > now() - interval '35 seconds'
                     and s.slept_at > clock_timestamp() - interval '25 seconds')
    then
        perform pgqueue.notify_sleepers(line, 1);
    end if;
    enqueue.id := own_id;
    enqueue.created := true;
    enqueue.outcome := 'created';
end $$;
comment on function pgqueue.enqueue(text, jsonb, text, integer, timestamptz, double precision, integer, text, text, jsonb) is
'Enqueues one job in the caller''s transaction. Returns its id; created is false when unique_key or idempotency_key led to a job that exists already, and outcome says what became of that one: kept, replaced, postponed or raised (follow_up: a job was created that runs after it); options.unique, {scope, period, on_conflict, max_delay}, asks for it. select id from pgqueue.enqueue(''send_welcome'', ''{"user_id": 7}'', queue => ''email'')';

-- sql/2_functions/producer/enqueue_many.sql
-- Inserts many jobs with one statement, in the caller's transaction; all or none.
-- Called by producers. `jobs` is a JSON array of objects keyed like the arguments of enqueue.
-- Locks: as enqueue, in the order that all verbs over several jobs keep (sql/README.md): idempotency keys, waiting holders that
-- it may change (lock_key_holders), unique keys; each in sorted order, keys in that of their bytes. Index: the primary keys.
create function pgqueue.enqueue_many(jobs jsonb, out ids bigint[], out created boolean[], out outcomes text[])
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
declare
    total bigint;
    ready bigint;
    later bigint;
    is_plain boolean;
    keyed boolean;
    asks boolean := false;
    lines text[];
    line_jobs bigint[];
    own_ids bigint[];
    new_ids bigint[];
    item record;
    last_n bigint;
    last_key text[];
    last_how jsonb;
    holder bigint;
    outcome text;
    again bigint[] := '{}';
    first_due timestamptz;
    asked jsonb;
begin
    if jobs is null or jsonb_typeof(jobs) <> 'array' then
        raise exception using errcode = 'PQ001', message = 'jobs: expected a JSON array',
            hint = 'An array of objects keyed like the arguments of pgqueue.enqueue.';
    end if;
    total := jsonb_array_length(jobs);
    if total = 0 then
        ids := '{}';
        created := '{}';
        return;
    end if;
    -- or no objects, which reject_jobs then says
    keyed := jsonb_path_exists(jobs, 'strict $[*] ? (@.type() != "object" || exists (@.unique_key) || exists (@.idempotency_key))');
    if pg_sequence_last_value('pgqueue.attempts_set') is not null then
        jobs := (select jsonb_agg(case when j.job ->> 'max_attempts' is null and q.name is not null
                                       then j.job || jsonb_build_object('max_attempts', q.max_attempts) else j.job end order by j.n)
                   from jsonb_array_elements(jobs) with ordinality as j (job, n)
                   left join pgqueue.queues as q on q.name = coalesce(j.job ->> 'queue', 'default') and q.max_attempts is not null
                                                and jsonb_typeof(j.job) = 'object');
    end if;
    if keyed then
        perform pgqueue.reject_jobs(jobs);  -- before a key is waited for
    end if;
    own_ids := array(select nextval('pgqueue.job_ids') from generate_series(1, total));
    new_ids := own_ids;
    ids := own_ids;
    if keyed then
        outcomes := array_fill('created'::text, array[total::integer]);
        -- All idempotency keys, then all unique keys, each in sorted order: one order for every bulk, whatever it mixes.
        for item in
            select j.task, j.idempotency_key, j.n
              from rows from (jsonb_to_recordset(jobs) as (task text, idempotency_key text))
                   with ordinality as j (task, idempotency_key, n)
             where j.idempotency_key is not null
             order by j.task collate "C", j.idempotency_key collate "C", j.n
        loop
            ids[item.n] := pgqueue.take_idempotency_key(item.task, item.idempotency_key, own_ids[item.n]);
            if ids[item.n] <> own_ids[item.n] then
                outcomes[item.n] := 'kept';
            end if;
        end loop;
        asks := jsonb_path_exists(jobs, '$[*].options.unique');
        if asks then
            perform pgqueue.lock_key_holders(jobs, array(select o.own_id = o.id
                                                       from unnest(own_ids, ids) with ordinality as o (own_id, id, n) order by o.n));
        end if;
        for item in
            select j.task, j.unique_key, j.idempotency_key, j.options -> 'unique' as how, j.n,
                   case when j.options #> '{unique, period}' is null then 'unique' else 'period' end as kind
              from rows from (jsonb_to_recordset(jobs) as (task text, unique_key text, idempotency_key text, options jsonb))
                   with ordinality as j (task, unique_key, idempotency_key, options, n)
             where j.unique_key is not null
             order by j.task collate "C", j.unique_key collate "C", kind, j.n
        loop
            continue when ids[item.n] <> own_ids[item.n];
            if array[item.task, item.unique_key, item.kind] is distinct from last_key then
                if item.how is null then
                    holder := own_ids[item.n];
                    outcome := 'created';
                    insert into pgqueue.unique_keys (kind, task, key, job_id)
                    values ('unique', item.task, item.unique_key, holder)
                    on conflict on constraint unique_keys_one_job_a_key do nothing;
                    if not found then
                        select k.holder, k.outcome into holder, outcome
                          from pgqueue.take_unique_key(item.task, item.unique_key, own_ids[item.n]) as k;
                    end if;
                else
                    select k.holder, k.outcome into holder, outcome
                      from jsonb_to_record(jobs -> (item.n - 1)::integer)
                           as j (args jsonb, queue text, priority integer, run_at timestamptz, delay double precision,
                                 max_attempts integer, options jsonb)
                           cross join lateral pgqueue.take_unique_key(
                               item.task, item.unique_key, own_ids[item.n], item.how, pgqueue.job_to_be(
                                   own_ids[item.n], coalesce(j.run_at, clock_timestamp() + make_interval(secs => j.delay)),
                                   j.priority, j.max_attempts, j.queue, item.task, j.args, item.unique_key, j.options)) as k;
                end if;
                last_n := item.n;
                last_key := array[item.task, item.unique_key, item.kind];
                last_how := item.how;
            else
                -- The same key again: what was found the first time still holds, or its holder is about to be inserted.
                -- What changes a holder is done when it is there.
                holder := ids[last_n];
                outcome := 'kept';
                if item.how is not null and (item.how is distinct from last_how
                                             or item.how ->> 'on_conflict' not in ('keep', 'follow_up')) then
                    again := again || item.n;
                end if;
            end if;
            ids[item.n] := holder;
            outcomes[item.n] := outcome;
            if holder <> own_ids[item.n] and item.idempotency_key is not null then
                -- the same enqueue, repeated, means the same job: so does its idempotency key, whoever came by it
                update pgqueue.unique_keys as k set job_id = holder
                 where k.kind = 'idempotency' and k.task = item.task and k.key = item.idempotency_key;
                ids := array_replace(ids, own_ids[item.n], holder);
            end if;
        end loop;
        new_ids := array(select case when o.outcome = 'created' then o.id end
                           from unnest(own_ids, outcomes) with ordinality as o (id, outcome, n) order by o.n);
        if asks then
            asked := jobs;
            jobs := (select jsonb_agg(case when j.job #> '{options, unique}' is null then j.job else jsonb_set(
                                          j.job, '{options}', coalesce(pgqueue.options_to_store(j.job -> 'options'), 'null'))
                                      end order by j.n)
                       from jsonb_array_elements(jobs) with ordinality as j (job, n));
        end if;
    end if;
    -- The jobs without a time of their own: nearly always all of them, so one plain insert. What could not be stored is
    -- left out, and so missed below; a cast that fails would say neither which job it was nor what of it. Names are looked
    -- at once a queue and task; one that a number or an object could have become is looked at as JSON.
    with inserted as (
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select j.id, now(), now(), 2 * coalesce(ascii(j.priority) - ascii('0'), 5) + 1, 0, coalesce(j.max_attempts::integer, 5), 0,
               coalesce(j.queue, 'default'), j.task, coalesce(j.args, '{}'), j.unique_key, j.options
          from rows from (jsonb_to_recordset(jobs) as (task text, args jsonb, queue text, priority text,
                   run_at text, delay text, max_attempts text, unique_key text,
                   idempotency_key text, options jsonb), unnest(new_ids))
               as j (task, args, queue, priority, run_at, delay, max_attempts, unique_key, idempotency_key, options, id)
         where j.id is not null and j.run_at is null and j.delay is null and j.task is not null
           and (j.args is null or jsonb_typeof(j.args) = 'object')
           and (j.priority is null or j.priority in ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'))
           and (j.max_attempts is null or j.max_attempts ~ '^[1-9][0-9]{0,4}$' and (length(j.max_attempts) < 5 or j.max_attempts <= '32767' collate "C"))
        returning queue, task, options is not null as has_options
    ), counted as (
        select i.queue, i.task, count(*) as jobs, bool_or(i.has_options) as has_options
          from inserted as i group by i.queue, i.task
    )
    select coalesce(array_agg(c.queue), '{}'), coalesce(array_agg(c.jobs), '{}'), coalesce(sum(c.jobs), 0),
           coalesce(bool_and(not c.has_options and length(c.task) between 1 and 200
                             and length(c.queue) between 1 and 100 and translate(c.queue, '*"''', '') = c.queue
                             and concat(c.task, c.queue) !~ '[[:cntrl:]]'
                             and concat_ws(chr(10), c.task, c.queue) !~ '(?n)^([-0-9{[]|true$|false$)'), true)
      into lines, line_jobs, ready, is_plain from counted as c;
    if not (keyed or is_plain and ready = total) then
        perform pgqueue.reject_jobs(jobs);  -- raises for what is wrong, and so undoes what was inserted
    end if;
    if ready < total then
        with given as materialized (
            select j.id, coalesce(j.run_at, clock_timestamp() + make_interval(secs => j.delay)) as due,
                   2 * coalesce(j.priority, 5) + 1 as lane, coalesce(j.max_attempts, 5) as max_attempts,
                   coalesce(j.queue, 'default') as queue, j.task, coalesce(j.args, '{}') as args, j.unique_key, j.options,
                   clock_timestamp() as seen_at  -- the clock is read by the statement that holds the lock (see enqueue)
              from rows from (jsonb_to_recordset(jobs) as (task text, args jsonb, queue text, priority integer,
                       run_at timestamptz, delay double precision, max_attempts integer, unique_key text,
                       idempotency_key text, options jsonb), unnest(new_ids))
                   as j (task, args, queue, priority, run_at, delay, max_attempts, unique_key, idempotency_key, options, id)
             where j.id is not null and (j.run_at is not null or j.delay is not null)
        ), scheduled as (
            insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                                args, unique_key, options)
            select g.id, g.due, now(), g.lane, 0, g.max_attempts, 0, g.queue, g.task, g.args, g.unique_key, g.options
              from given as g where g.due > g.seen_at
            returning run_at
        ), overdue as (
            insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                            args, unique_key, options)
            select g.id, g.due, now(), g.lane, 0, g.max_attempts, 0, g.queue, g.task, g.args, g.unique_key, g.options
              from given as g where g.due <= g.seen_at
            returning queue
        )
        select lines || coalesce(array_agg(o.queue), '{}'), line_jobs || coalesce(array_agg(1::bigint), '{}'),
               (select min(s.run_at) from scheduled as s), (select count(*) from scheduled) + count(*)
          into lines, line_jobs, first_due, later from overdue as o;
        if first_due is not null then
            perform pgqueue.wake_leader(first_due);
        end if;
        if ready + later < cardinality(array_remove(new_ids, null)) then
            perform pgqueue.reject_types(jobs);  -- what no statement above has taken: a number in an odd spelling
            raise exception using errcode = 'PQ001', message = 'jobs: some of them cannot be read',
                hint = 'Numbers are numbers, times ISO 8601.';  -- no job is ever left out in silence
        end if;
    end if;
    perform pgqueue.notify_sleepers(l.queue, sum(l.jobs)::integer)
       from unnest(lines, line_jobs) as l (queue, jobs) group by l.queue;
    foreach last_n in array again loop
        select e.id, e.outcome into holder, outcome
          from jsonb_to_record(asked -> (last_n - 1)::integer)
               as j (task text, args jsonb, queue text, priority integer, run_at timestamptz, delay double precision,
                     max_attempts integer, unique_key text, idempotency_key text, options jsonb)
               cross join lateral pgqueue.enqueue(j.task, j.args, j.queue, j.priority, j.run_at, j.delay, j.max_attempts,
                                                  j.unique_key, null, j.options) as e;
        ids[last_n] := holder;
        outcomes[last_n] := outcome;
    end loop;
    if keyed then
        created := array(select o.outcome in ('created', 'follow_up')
                           from unnest(outcomes) with ordinality as o (outcome, n) order by o.n);
    else
        created := array_fill(true, array[total::integer]);
    end if;
end $$;
comment on function pgqueue.enqueue_many(jsonb) is
'Enqueues many jobs in the caller''s transaction; all or none. Returns, in the order given, each job''s id, whether it was created, and, when some have keys, the outcome (see enqueue). A job that is refused is named by its place, counted from 0.';

-- sql/2_functions/producer/events.sql
-- The endings of attempts, in their order, read from the history itself: nothing is written for those who follow them.
-- Called by producers and operators. Locks: none. Index: finished_jobs_by_id (its second column), job_failures_by_time.
--
-- How none is missed: an ending draws its time while it holds a lock for writing on the table that keeps it. So (1) read the
-- clock, (2) then, who holds such a lock; once those have ended, (3) in a new statement, every ending up to that time is
-- there to be read, and none will join them. It is the rule of prove_floors. An ending in a transaction that stays open
-- holds back those that come after it, and so does nothing else. A clock that is set back hides what ends until it has
-- come up again.

-- (1) and (2).
create function pgqueue.events_horizon(out until timestamptz, out under_way text[])
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    until := clock_timestamp();
    under_way := pgqueue.endings_under_way();
end $$;
comment on function pgqueue.events_horizon() is
'A time up to which read_events() misses nothing once endings_under_way(among => under_way) is empty.';

-- (3). The endings after (after_at, after_id, after_attempt), the earliest first.
create function pgqueue.read_events(
    after_at timestamptz, after_id bigint, after_attempt integer, until timestamptz, of_queue text default null,
    of_task text default null, max_rows integer default 1000
) returns table (at timestamptz, job_id bigint, attempt integer, kind text, queue text, task text, worker_id bigint,
                 reason text, error text, message text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    -- a day before: an ending finds its partition a moment before it draws its time
    days constant date[] := array(
        select d.day::date from generate_series((greatest(after_at, '2020-01-01 UTC') at time zone 'UTC')::date - 1,
                                                (least(until, clock_timestamp() + interval '1 day') at time zone 'UTC')::date,
                                                interval '1 day') as d (day)) || date '-infinity';
begin
    perform pgqueue.reject_search('max_rows', max_rows, null);
    return query
    select e.at, e.job_id, e.attempt, e.kind, e.queue, e.task, e.worker_id, e.reason, e.error, e.message
      from (select f.finished_at as at, f.id as job_id, f.attempt::integer as attempt, f.state as kind, f.queue, f.task,
                   f.worker_id, f.reason, null::text as error, null::text as message
              from pgqueue.finished_jobs as f
             where f.day = any (days) and f.finished_at >= read_events.after_at and f.finished_at <= read_events.until
            union all
            select f.failed_at, f.job_id, f.attempt,
                   case when f.dead_reason is not null then 'dead' when f.error = 'pgqueue.Crashed' then 'rescued'
                        else 'failed' end,
                   f.queue, f.task, f.worker_id, f.dead_reason, f.error, f.message
              from pgqueue.job_failures as f
             where f.day = any (days) and f.failed_at >= read_events.after_at and f.failed_at <= read_events.until) as e
     where (e.at, e.job_id, e.attempt) > (read_events.after_at, read_events.after_id, read_events.after_attempt)
       and (read_events.of_queue is null or e.queue = read_events.of_queue)
       and (read_events.of_task is null or e.task = read_events.of_task)
     order by e.at, e.job_id, e.attempt
     limit read_events.max_rows;
end $$;
comment on function pgqueue.read_events(timestamptz, bigint, integer, timestamptz, text, text, integer) is
'The endings of attempts after a place and up to a time of events_horizon(), the earliest first. kind: completed, cancelled, failed (it is tried again), rescued (its worker died; it is tried again) or dead.';

-- sql/2_functions/producer/look.sql
-- What has become of jobs: their state, their result, how far they have come; without their args.
-- Called by producers, workers and operators. Locks: none. Index: the primary keys, finished_jobs_by_id for those that are
-- in none of the other tables, job_failures_by_job, job_progress_one_row_a_job, job_reports_by_job.
--
-- One statement, so one snapshot: a job that moves meanwhile is found in exactly one table.
create function pgqueue.look(ids bigint[])
returns table (id bigint, state text, queue text, task text, priority integer, attempt integer, max_attempts integer,
               crashes integer, created_at timestamptz, run_at timestamptz, claimed_at timestamptz, finished_at timestamptz,
               worker_id bigint, reason text, error text, message text, tags text[], result jsonb, progress jsonb,
               progress_at timestamptz)
language plpgsql stable security definer rows 10
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    return query
    with open as materialized (
        select r.id, 'ready' as state, r.queue, r.task, r.lane, r.attempt, r.max_attempts, r.crashes, r.created_at, r.run_at,
               null::timestamptz as claimed_at, null::timestamptz as finished_at, null::bigint as worker_id,
               null::bigint as lease, null::text as reason, null::text as error, null::text as message, r.options,
               null::jsonb as result
          from pgqueue.ready_jobs as r where r.id = any (look.ids)
        union all
        select s.id, 'scheduled', s.queue, s.task, s.lane, s.attempt, s.max_attempts, s.crashes, s.created_at, s.run_at, null,
               null, null, null, null, null, null, s.options, null
          from pgqueue.scheduled_jobs as s where s.id = any (look.ids)
        union all
        select b.id, 'blocked', b.queue, b.task, b.lane, b.attempt, b.max_attempts, b.crashes, b.created_at, b.run_at, null,
               null, null, null, null, null, null, b.options, null
          from pgqueue.blocked_jobs as b where b.id = any (look.ids)
        union all
        select r.id, 'running', r.queue, r.task, r.lane, r.attempt, r.max_attempts, r.crashes, r.created_at, r.run_at,
               r.claimed_at, null, r.worker_id, r.lease, null, null, null, r.options, null
          from pgqueue.running_jobs as r where r.id = any (look.ids)
        union all
        select d.id, 'dead', d.queue, d.task, d.lane, d.attempt, d.max_attempts, d.crashes, d.created_at, d.run_at,
               d.claimed_at, d.died_at, d.worker_id, null, d.reason, d.error, d.message, d.options, null
          from pgqueue.dead_letters as d where d.id = any (look.ids)
    ), found as (
        select * from open
        union all
        select f.id, f.state, f.queue, f.task, f.lane, f.attempt, f.max_attempts, f.crashes, f.created_at, f.run_at,
               f.claimed_at, f.finished_at, f.worker_id, null, f.reason, null, null, f.options, f.result
          from pgqueue.finished_jobs as f
         where f.id = any (array(select i.id from unnest(look.ids) as i (id)
                                  where i.id not in (select o.id from open as o)))
    )
    select j.id, j.state, j.queue, j.task, j.lane / 2, j.attempt::integer, j.max_attempts::integer, j.crashes::integer,
           j.created_at, j.run_at, j.claimed_at, j.finished_at, j.worker_id, j.reason, coalesce(j.error, f.error),
           coalesce(j.message, f.message),
           case when jsonb_typeof(j.options -> 'tags') = 'array'
                then array(select t.tag from jsonb_array_elements_text(j.options -> 'tags') as t (tag)) else '{}' end,
           j.result, coalesce(p.progress, r.progress), coalesce(p.noted_at, r.reported_at)
      from found as j
      left join lateral (select e.error, e.message from pgqueue.job_failures as e
                          where e.job_id = j.id and j.error is null order by e.failed_at desc limit 1) as f on true
      left join lateral (select l.progress, l.noted_at from pgqueue.job_progress as l
                          where l.job_id = j.id and l.lease = j.lease limit 1) as p on true
      left join lateral (select e.progress, e.reported_at from pgqueue.job_reports as e
                          where e.job_id = j.id and e.attempt = j.attempt and j.lease is null and e.progress is not null
                          order by e.reported_at desc limit 1) as r on true
     order by j.id;
end $$;
comment on function pgqueue.look(bigint[]) is
'What has become of jobs, a row for each that is on record. error and message: of the last attempt that failed. result: when the task keeps results, else null. progress: {done, total, message, metadata} of the attempt that runs, or of the last one.';

-- sql/2_functions/producer/wait_for.sql
-- Waiting for the end of jobs without losing the notification. The waiter, which listens on its channel, (1) registers and
-- commits, (2) reads in a new statement which endings are under way: only such a one may have looked for waiters before (1) and
-- have yet to commit, (3) looks at the jobs, with pauses that grow to 250 ms, until those have ended, and once more after the
-- test that found them gone. From then on it relies on the NOTIFY; an ending above READ COMMITTED, which sees no waiter
-- that came after its snapshot, is found by a look every 2 s.

-- (1) Called by producers, again every 10 s while they wait. Locks: RowExclusive on waiters. Index: waiters_one_row_a_period.
create function pgqueue.wait_for(ids bigint[], channel text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
begin
    -- An ending must never stumble over a channel.
    if coalesce(channel !~ '^pgqueue_wait_[0-9a-f]{16}$', true) then
        raise exception using errcode = 'PQ001', message = format('channel: %s is not a waiter''s', pgqueue.as_given(channel)),
            hint = 'pgqueue_wait_ and 16 hexadecimal digits, drawn at random.';
    end if;
    if cardinality(ids) > 1000 then
        raise exception using errcode = 'PQ001', message = format('ids: %s of them', cardinality(ids)),
            hint = 'At most 1,000 in a call.';
    end if;
    perform set_config('synchronous_commit', 'off', true);
    insert into pgqueue.waiters (period, job_id, channel)
    select date_bin('10 seconds', clock_timestamp(), '2000-01-01'), i.id, wait_for.channel
      from unnest(wait_for.ids) as i (id) where i.id is not null
    on conflict do nothing;
    -- So the waiter hears that its LISTEN is heard: behind a transaction pooler it is not.
    perform pg_notify(wait_for.channel, '') where current_setting('pgqueue.notify', true) is distinct from 'off';
end $$;
comment on function pgqueue.wait_for(bigint[], text) is
'Registers a waiter for 35 s: the end of a job in `ids` (0: of any job or attempt) notifies `channel` (pgqueue_wait_ and 16 hexadecimal digits) with its id. An empty notification comes at once.';

-- (2) Called by producers after (1). `among`: only these; null: all. Locks: none.
create function pgqueue.endings_under_way(among text[] default null)
returns text[] language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgqueue.writers('finished_jobs', endings_under_way.among) || pgqueue.writers('dead_letters', endings_under_way.among)
        || pgqueue.writers('job_failures', endings_under_way.among);
end $$;
comment on function pgqueue.endings_under_way(text[]) is
'The virtual transactions that are about to end jobs or attempts.';

-- sql/2_functions/shared/audited.sql
-- Writes down what an operator has done. Called by every function in operator/ that changes something, in its transaction.
-- Who it was: the role that logged in, and the setting pgqueue.actor.
-- Locks: none but the insert's. Index: none.
create function pgqueue.audited(verb text, target text default null, ids bigint[] default null, details jsonb default null)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if cardinality(ids) = 0 then
        return;  -- it changed nothing
    end if;
    if ids is not null then
        perform nextval('pgqueue.job_ids');  -- a number is lost, and what there is is counted again: see depths_due
    end if;
    insert into pgqueue.audit (acted_at, role, actor, verb, target, jobs, job_ids, filter, details)
    values (clock_timestamp(), session_user, left(nullif(current_setting('pgqueue.actor', true), ''), 200), verb, target,
            cardinality(ids), ids[1:20],
            case when ids is not null then left(nullif(current_setting('pgqueue.filter', true), ''), 1000) end,
            nullif(jsonb_strip_nulls(details), '{}'));
end $$;
comment on function pgqueue.audited(text, text, bigint[], jsonb) is
'Private. Notes in pgqueue.audit that an operator''s function has changed something.';

-- sql/2_functions/shared/cancel_as_requested.sql
-- Cancels those of the jobs that somebody had asked to cancel while they ran; they wait again now, or are dead.
-- Called by fail, snooze, release and rescue after they have moved them. Locks: those of cancel.
-- Index: cancel_requests_one_row_a_job.
create function pgqueue.cancel_as_requested(ids bigint[])
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
begin
    perform pgqueue.cancel(array[c.job_id], c.reason)
       from pgqueue.cancel_requests as c where c.job_id = any (cancel_as_requested.ids);
end $$;
comment on function pgqueue.cancel_as_requested(bigint[]) is
'Private. Carries out the requests to cancel that came while the jobs ran.';

-- sql/2_functions/shared/earlier_failures.sql
-- The failures that a job has had, oldest first, as a JSON array; a dead letter keeps this copy.
-- Called by fail, rescue. Locks: none. Index: job_failures_by_job.
create function pgqueue.earlier_failures(job_id bigint)
returns jsonb language plpgsql stable
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
begin
    return (select coalesce(jsonb_agg(jsonb_build_object('attempt', f.attempt, 'failed_at', f.failed_at, 'error', f.error,
                                'message', f.message, 'traceback', f.traceback) order by f.failed_at), '[]')
              from pgqueue.job_failures as f where f.job_id = earlier_failures.job_id);
end $$;
comment on function pgqueue.earlier_failures(bigint) is 'Private. Every failed attempt of a job that is on record, oldest first.';

-- sql/2_functions/shared/free_keys.sql
-- Frees the unique keys of jobs that have ended, and gives the turn to the jobs that waited for their end.
-- Called by the endings, in their transaction, for what had a key; held: an array of [task, key, id].
-- Locks: the keys' rows, skipping those that a producer holds: an ending never waits for one. A key left behind so has a
-- holder that has ended, and is free for whoever comes (take_unique_key). Index: unique_keys_one_job_a_key.
create function pgqueue.free_keys(held jsonb, with_periods boolean default false)
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
declare
    kinds constant text[] := case when with_periods then '{unique, period}' else '{unique}' end;
    freed bigint[];
begin
    with gone as (
        delete from pgqueue.unique_keys as k
         where k.ctid = any (array(
             select own.ctid from jsonb_array_elements(held) as h (job)
              cross join lateral (select u.ctid from pgqueue.unique_keys as u
                                   where u.kind = any (kinds) and u.task = h.job ->> 0 and u.key = h.job ->> 1
                                     and u.job_id = (h.job ->> 2)::bigint
                                   limit 1 for update skip locked) as own))
        returning k.job_id
    )
    select array_agg(g.job_id) into freed from gone as g;
    if exists (select from pgqueue.blocked_jobs as b where b.after_id = any (freed)) then
        perform pgqueue.unblock(freed);
    end if;
end $$;
comment on function pgqueue.free_keys(jsonb, boolean) is
'Private. Frees the unique keys that these jobs still hold, with_periods those for a period as well (of jobs that were cancelled), and unblocks what waited for them.';

-- sql/2_functions/shared/history_day.sql
-- The partition that an ending of now belongs to: today (UTC) if that partition exists, else the overflow.
-- Called by the endings. Locks: none. Index: the catalog's.
create function pgqueue.history_day(parent text)
returns date language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    today constant date := (clock_timestamp() at time zone 'UTC')::date;
begin
    if to_regclass('pgqueue.' || parent || to_char(today, '_YYYYMMDD')) is null then
        return '-infinity';
    end if;
    return today;
end $$;
comment on function pgqueue.history_day(text) is
'Private. The value of `day` for an ending of now: today, or -infinity (the overflow partition) when today has no partition.';

-- sql/2_functions/shared/job_to_be.sql
-- A new job as one value, for the conflicts of its unique key; and its options as they are stored.
-- Called by enqueue and enqueue_many for jobs with options.unique. Locks: none.
create function pgqueue.job_to_be(
    id bigint, run_at timestamptz, priority integer, max_attempts integer, queue text, task text, args jsonb,
    unique_key text, options jsonb
) returns jsonb language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return jsonb_build_object(
        'id', id, 'run_at', coalesce(run_at, now()), 'created_at', now(), 'lane', 2 * coalesce(priority, 5) + 1,
        'attempt', 0, 'max_attempts', coalesce(max_attempts, 5), 'crashes', 0, 'queue', coalesce(queue, 'default'),
        'task', task, 'args', coalesce(args, '{}'), 'unique_key', unique_key, 'options', pgqueue.options_to_store(options));
end $$;
comment on function pgqueue.job_to_be(bigint, timestamptz, integer, integer, text, text, jsonb, text, jsonb) is
'Private. A job as JSON, with the columns of blocked_jobs.';

-- What unique means is said with each enqueue and not stored; but a replay has to know that a key was for a period.
create function pgqueue.options_to_store(options jsonb)
returns jsonb language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if options #> '{unique, period}' is not null then
        return jsonb_set(options, '{unique}', jsonb_build_object('period', options #> '{unique, period}'));
    end if;
    return nullif(options - 'unique', '{}');
end $$;
comment on function pgqueue.options_to_store(jsonb) is 'Private. The options without unique, of which only the period stays.';

-- sql/2_functions/shared/kept.sql
-- What the queues keep, for retention. Without settings: completed and cancelled jobs 7 days, dead letters for ever.

-- The settings as text, to see whether they have changed. Called by upkeep and trim_history. Locks: none. Scans queues.
create function pgqueue.kept_settings()
returns text language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select coalesce(md5(string_agg(concat_ws(' ', q.name, coalesce(q.keep_completed::text, '-'), coalesce(q.keep_cancelled::text, '-'),
                                       coalesce(q.keep_dead::text, '-'), coalesce(q.max_completed::text, '-'),
                                       coalesce(q.max_cancelled::text, '-'), coalesce(q.max_dead::text, '-')), ';' order by q.name)), '')
          from pgqueue.queues as q
         where coalesce(q.keep_completed::text, q.keep_cancelled::text, q.keep_dead::text, q.max_completed::text,
                        q.max_cancelled::text, q.max_dead::text) is not null);
end $$;
comment on function pgqueue.kept_settings() is 'Private. What the queues keep, as text; empty: none says anything.';

-- Whether something is to be dropped or trimmed. Called by upkeep. Locks: none. Index: retention_one_row.
create function pgqueue.retention_due()
returns boolean language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from pgqueue.retention as r
                    where r.due_at <= clock_timestamp() or r.settings <> pgqueue.kept_settings()
                       or r.due_at > clock_timestamp() + interval '2 days');  -- before the clock was set back
end $$;
comment on function pgqueue.retention_due() is 'Private. Whether something may have to be dropped or trimmed.';

-- For how long completed or cancelled jobs are kept by the queue that keeps them longest. Called by retention. Locks: none.
create function pgqueue.longest_kept()
returns interval language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return least('1000 years', greatest('7 days', (select max(greatest(q.keep_completed, q.keep_cancelled)) from pgqueue.queues as q)));
end $$;
comment on function pgqueue.longest_kept() is 'Private. The longest retention of completed and cancelled jobs of any queue; 7 days at least.';

-- Before when an ending may go: roll_up has read it, and a minute has passed for those who wait for it.
-- Called by retention. Locks: none.
create function pgqueue.trim_horizon()
returns timestamptz language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select least(p.rolled_up_to, clock_timestamp() - interval '1 minute') from pgqueue.rollup_progress as p);
end $$;
comment on function pgqueue.trim_horizon() is 'Private. Jobs that ended after this are never trimmed.';

-- The rules of a pass: for queue (null: all others) and state, rows that ended before `before` go; those that are left go when
-- they are older than `keep` (null: with their day), or when there are too many (counted). None, if days are all that is to go.
-- Called by trim_history. Locks: none. Index: rollups_one_row_a_bucket_and_task.
--
-- A number of jobs is looked up in the rollups as the minute since which as many have ended (the hour, if it is two days ago): no
-- index on finished_jobs could count them.
create function pgqueue.keep_rules(in_overflow boolean)
returns jsonb language plpgsql stable
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan set enable_seqscan = off
as $$
declare
    longest constant interval := pgqueue.longest_kept();
    horizon constant timestamptz := pgqueue.trim_horizon();
    minutes_from constant timestamptz := date_trunc('hour', (select p.rolled_up_to from pgqueue.rollup_progress as p) - interval '47 hours');
begin
    return (
        with kept as (
            select q.name as queue, k.state, least(coalesce(k.keep, '7 days'), '1000 years') as keep, k.most
              from pgqueue.queues as q
             cross join lateral (values ('completed', q.keep_completed, q.max_completed),
                                        ('cancelled', q.keep_cancelled, q.max_cancelled)) as k (state, keep, most)
             where k.keep is not null or k.most is not null
            union all
            select null, s.state, interval '7 days', null from (values ('completed'), ('cancelled')) as s (state)
        ), ended as (
            select k.queue, k.state, k.most, r.bucket_at,
                   sum(case k.state when 'completed' then r.completed else r.cancelled end) as jobs
              from pgqueue.rollups as r join kept as k on k.queue = r.queue and k.most > 0
             where r.period = 'minute' and r.bucket_at >= minutes_from or r.period = 'hour' and r.bucket_at < minutes_from
             group by k.queue, k.state, k.most, r.bucket_at
        ), added_up as (
            select e.*, sum(e.jobs) over (partition by e.queue, e.state order by e.bucket_at desc) as since from ended as e
        ), counts as (
            select a.queue, a.state, max(a.bucket_at) as before from added_up as a where a.since >= a.most
             group by a.queue, a.state
        ), rules as (
            select k.queue, k.state, k.most is not null as counted,
                   case when k.keep < longest or in_overflow then k.keep end as keep,
                   case when k.keep < longest or in_overflow or k.most is not null
                        then least(horizon, greatest(clock_timestamp() - k.keep,
                                                     case k.most when 0 then horizon else c.before end)) end as before
              from kept as k left join counts as c on c.queue = k.queue and c.state = k.state
        )
        select case when bool_or(r.keep is not null or r.counted) then jsonb_agg(to_jsonb(r)) else '[]' end from rules as r);
end $$;
comment on function pgqueue.keep_rules(boolean) is 'Private. By which rules the rows of a partition go.';

-- sql/2_functions/shared/matches.sql
-- Whether a job is one of those that an operator means. Null: that filter was not given.
-- Called by find_jobs, find_dead, cancel_matching; it is inlined into their queries, so that it costs what is written out.
-- Locks: none. Index: none of its own.
create function pgqueue.matches(
    queue text, task text, created_at timestamptz, args jsonb, options jsonb,
    of_queue text, of_task text, of_tag text, created_after timestamptz, created_before timestamptz, of_args jsonb
) returns boolean language sql immutable parallel safe
return (of_queue is null or queue = of_queue)
   and (of_task is null or task = of_task)
   and (of_tag is null or options -> 'tags' ? of_tag)
   and (created_after is null or created_at >= created_after)
   and (created_before is null or created_at < created_before)
   and (of_args is null or args @> of_args);
comment on function pgqueue.matches(text, text, timestamptz, jsonb, jsonb, text, text, text, timestamptz, timestamptz, jsonb) is
'Private. Whether a job matches every filter given.';

-- sql/2_functions/shared/meet_waiting.sql
-- Does to a waiting job, whose unique key a new one wants, what `how` asks for. `job`: what the new one would have been.
-- Called by take_unique_key. Returns null when the job does not wait any more.
-- Locks: the job's row, until the end of the transaction: for key share when it is kept, so that many may keep one at
-- once, else for update; RowExclusive on ready_jobs for a ready one. Index: the primary keys.
--
-- A job that is locked is skipped by claim and promote, so it starts when it can see what this transaction has written.
-- A worker may have skipped it just now and be about to fall asleep. So a ready one is announced as by an enqueue, under
-- a lock that fall_asleep's look for writers finds.
create function pgqueue.meet_waiting(holder bigint, how jsonb, job jsonb)
returns text language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    policy constant text := coalesce(how ->> 'on_conflict', 'keep');
    new_args constant jsonb := job -> 'args';
    new_priority constant integer := (job ->> 'lane')::integer / 2;
    due timestamptz := (job ->> 'run_at')::timestamptz;
    outcome text := 'kept';
    is_ready boolean;
    held record;
    line text;
begin
    if policy in ('keep', 'follow_up') then
        perform from pgqueue.scheduled_jobs as s where s.id = holder for key share;
        if not found then
            lock table pgqueue.ready_jobs in row exclusive mode;
            select r.queue into line from pgqueue.ready_jobs as r where r.id = holder for key share;
            if not found then
                return null;
            end if;
            perform pgqueue.notify_sleepers(line, 1);
        end if;
        return 'kept';
    end if;
    select s.queue, s.run_at, s.created_at, s.lane into held from pgqueue.scheduled_jobs as s
     where s.id = holder for update;
    is_ready := not found;
    if is_ready then
        lock table pgqueue.ready_jobs in row exclusive mode;
        select r.queue, r.run_at, r.created_at, r.lane into held from pgqueue.ready_jobs as r
         where r.id = holder for update;
        if not found then
            return null;
        end if;
    end if;
    if policy in ('replace', 'debounce') then
        outcome := 'replaced';
        if new_args ? 'pgqueue.encrypted' and job ->> 'queue' <> held.queue then
            raise exception using errcode = 'PQ001',
                message = format('queue: job %s waits in queue %s, and encrypted args are sealed for queue %s', holder, held.queue, job ->> 'queue'),
                hint = 'Enqueue it to the queue of the job that it replaces.';
        end if;
        update pgqueue.scheduled_jobs as s set args = new_args where s.id = holder and s.args <> new_args;
        update pgqueue.ready_jobs as r set args = new_args where r.id = holder and r.args <> new_args;
    end if;
    if policy = 'raise_priority' and new_priority < held.lane / 2 then
        outcome := 'raised';
        update pgqueue.scheduled_jobs as s set lane = 2 * new_priority + s.lane % 2 where s.id = holder;
        update pgqueue.ready_jobs as r set lane = 2 * new_priority + r.lane % 2, position = default where r.id = holder;
    end if;
    if policy = 'debounce' then
        due := least(due, held.created_at + make_interval(secs => (how ->> 'max_delay')::double precision));
        -- The clock is read under the lock: no job is ever scheduled for the past (promotion relies on it).
        lock table pgqueue.scheduled_jobs in row exclusive mode;
        if due > greatest(held.run_at, clock_timestamp()) then
            outcome := 'postponed';
            update pgqueue.scheduled_jobs as s set run_at = due where s.id = holder;
            with moved as (
                delete from pgqueue.ready_jobs as r where r.id = holder
                returning r.id, r.created_at, r.lane, r.attempt, r.max_attempts, r.crashes, r.queue, r.task, r.args,
                          r.unique_key, r.options
            )
            insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                                args, unique_key, options)
            select m.id, due, m.created_at, m.lane | 1, m.attempt, m.max_attempts, m.crashes, m.queue, m.task, m.args,
                   m.unique_key, m.options
              from moved as m;
            perform pgqueue.wake_leader(due);
        end if;
    end if;
    if is_ready and outcome <> 'postponed' then
        perform pgqueue.notify_sleepers(held.queue, 1);
    end if;
    return outcome;
end $$;
comment on function pgqueue.meet_waiting(bigint, jsonb, jsonb) is
'Private. Keeps, replaces, postpones or raises a waiting job, and says which (kept, replaced, postponed, raised); null: it does not wait any more.';

-- sql/2_functions/shared/notify_sleepers.sql
-- Wakes as many idle workers of a queue as it brings jobs, each on its own channel; nobody asleep: no NOTIFY.
-- Called by enqueue, promote, release, rescue, replay, and by a claim that came back full; after their insert, in a
-- statement of its own (VOLATILE: a fresh snapshot), which is half of what closes the race with falling asleep.
-- Locks: none, unless it notifies (then the database-wide NOTIFY lock at commit). Index: sleepers_one_row_a_worker_and_period.
create function pgqueue.notify_sleepers(queue text, jobs integer)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        -- an old snapshot cannot see who fell asleep since: everybody looks
        perform pg_notify('pgqueue', '') where current_setting('pgqueue.notify', true) is distinct from 'off';
        return;
    end if;
    perform pg_notify('pgqueue_' || s.worker_id, '')
       from (select sleepers.worker_id
               from pgqueue.sleepers
              where sleepers.queue = notify_sleepers.queue and sleepers.period > now() - interval '35 seconds'
                and sleepers.slept_at > clock_timestamp() - interval '25 seconds'
              group by sleepers.worker_id
              order by max(sleepers.slept_at) desc
              limit notify_sleepers.jobs) as s
      where current_setting('pgqueue.notify', true) is distinct from 'off';
end $$;
comment on function pgqueue.notify_sleepers(text, integer) is
'Private. Notifies up to `jobs` idle workers of `queue`. `set pgqueue.notify = off` silences it (for applications that PREPARE TRANSACTION).';

-- sql/2_functions/shared/put_schedule.sql
-- Makes or changes a schedule. Called by schedule and sync_schedules. `definition`: keyed like the arguments of schedule,
-- null: the default. When its timing changes it is planned anew, from now; else it keeps its next due time. A pause stays.
-- By hand (owner null) any may be changed; an app changes its own alone.
-- Locks: the schedule's row. Index: schedules_one_row_a_name.
create function pgqueue.put_schedule(name text, owner text, definition jsonb)
returns text language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    given constant jsonb := coalesce(
        (select jsonb_object_agg(d.key, d.value) from jsonb_each(definition) as d where d.value <> 'null'), '{}');
    wanted pgqueue.schedules;
    held pgqueue.schedules;
    at_once constant timestamptz := clock_timestamp();
begin
    perform pgqueue.reject_schedule(put_schedule.name, given);
    wanted := jsonb_populate_record(null::pgqueue.schedules, jsonb_build_object(
        'args', '{}'::jsonb, 'queue', 'default', 'priority', 5, 'max_attempts', 5, 'at_startup', false, 'tz', 'UTC',
        'jitter', 0, 'grace', 15, 'missed', 'once', 'missed_limit', 100, 'overlap', 'allow') || given);
    wanted.name := put_schedule.name;
    wanted.owner := put_schedule.owner;
    wanted.created_at := at_once;
    wanted.changed_at := at_once;
    wanted.paused_at := null;
    wanted.due_at := case when wanted.at_startup then 'infinity' else '-infinity' end;
    wanted.problem := null;
    insert into pgqueue.schedules select wanted.* on conflict on constraint schedules_one_row_a_name do nothing;
    if found then
        perform pgqueue.wake_leader(wanted.due_at);
        return 'created';
    end if;
    select * into held from pgqueue.schedules as s where s.name = put_schedule.name for update;
    if not found then  -- deleted between the two statements
        return pgqueue.put_schedule(put_schedule.name, put_schedule.owner, definition);
    end if;
    if held.owner is distinct from put_schedule.owner and put_schedule.owner is not null then
        return 'foreign';
    end if;
    wanted.created_at := held.created_at;
    wanted.paused_at := held.paused_at;
    if held.problem is null
       and row (wanted.cron, wanted.seconds, wanted.every, wanted.at, wanted.at_startup, wanted.tz, wanted.starts_at, wanted.ends_at)
           is not distinct from
           row (held.cron, held.seconds, held.every, held.at, held.at_startup, held.tz, held.starts_at, held.ends_at)
    then
        wanted.changed_at := held.changed_at;
        wanted.due_at := held.due_at;
    end if;
    if wanted is not distinct from held then
        return 'unchanged';
    end if;
    update pgqueue.schedules as s
       set owner = wanted.owner, task = wanted.task, args = wanted.args, queue = wanted.queue, priority = wanted.priority,
           max_attempts = wanted.max_attempts, options = wanted.options, cron = wanted.cron, seconds = wanted.seconds,
           every = wanted.every, at = wanted.at, at_startup = wanted.at_startup, tz = wanted.tz,
           starts_at = wanted.starts_at, ends_at = wanted.ends_at, jitter = wanted.jitter, grace = wanted.grace,
           missed = wanted.missed, missed_limit = wanted.missed_limit, overlap = wanted.overlap,
           changed_at = wanted.changed_at, due_at = wanted.due_at, problem = wanted.problem
     where s.name = wanted.name;
    perform pgqueue.wake_leader(wanted.due_at);
    return 'changed';
end $$;
comment on function pgqueue.put_schedule(text, text, jsonb) is 'Private. Makes or changes a schedule: created, changed or unchanged; foreign: it belongs to somebody else.';

-- Says what is wrong with a schedule, and refuses it with SQLSTATE PQ001 (PQ003 for args) and a hint.
-- Called by put_schedule. A cron expression is read by the leader; a bad one is said in schedules.problem. Locks: none.
create function pgqueue.reject_schedule(name text, definition jsonb)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    seconds constant text := 'Seconds, from 0 to ten years.';
    timings constant text[] := array(
        select t.key from unnest(array['cron', 'every', 'at', 'at_startup']) as t (key)
         where coalesce(definition ->> t.key, 'false') <> 'false');
    stranger constant text := (
        select k.key from jsonb_object_keys(definition) as k (key)
         where k.key not in ('task', 'args', 'queue', 'priority', 'max_attempts', 'options', 'cron', 'seconds', 'every', 'at',
                             'at_startup', 'tz', 'starts_at', 'ends_at', 'jitter', 'grace', 'missed', 'missed_limit', 'overlap')
         order by k.key limit 1);
    mistyped constant text := (
        select f.key from (values ('task', 'string'), ('queue', 'string'), ('priority', 'number'),
                                  ('max_attempts', 'number'), ('cron', 'string'), ('seconds', 'string'),
                                  ('every', 'number'), ('at', 'string'), ('at_startup', 'boolean'), ('tz', 'string'),
                                  ('starts_at', 'string'), ('ends_at', 'string'), ('jitter', 'number'), ('grace', 'number'),
                                  ('missed', 'string'), ('missed_limit', 'number'), ('overlap', 'string')) as f (key, kind)
         where jsonb_typeof(definition -> f.key) <> f.kind or f.key in ('priority', 'max_attempts', 'missed_limit')
               and definition ->> f.key !~ '^-?[0-9]{1,9}$' or f.key in ('at', 'starts_at', 'ends_at')
               and definition -> f.key is not null and pgqueue.as_moment(definition -> f.key) is null
         order by f.key limit 1);
    absurd text;
    place constant text := format('schedule %s: ', regexp_replace(left(coalesce(name, 'null'), 100), '[[:cntrl:]]', '?', 'g'));
    code text := 'PQ001';
    problem text;
    remedy text;
begin
    if mistyped is null then
        absurd := (select t.key from unnest(array['at', 'starts_at', 'ends_at']) as t (key)
                    where not (definition ->> t.key)::timestamptz between '1970-01-01 UTC' and '2199-12-31 23:59:59 UTC' limit 1);
    end if;
    case
        when name is null or length(name) not between 1 and 100 or name ~ '[[:cntrl:]*"'']' then
            problem := format('name: %s is not a name', pgqueue.as_given(name));
            remedy := 'A schedule''s name has 1 to 100 characters: no control characters, quotes or asterisks.';
        when stranger is not null then
            problem := format('there is no %s', pgqueue.as_given(stranger));
            remedy := 'See the arguments of pgqueue.schedule.';
        when mistyped is not null then
            problem := case when mistyped in ('every', 'jitter', 'grace')
                            then format('%s: %s is out of range', mistyped, trim(both '''' from pgqueue.as_given(definition ->> mistyped)))
                            else format('%s: %s is none', mistyped, pgqueue.as_given(definition ->> mistyped)) end;
            remedy := case
                when mistyped in ('at', 'starts_at', 'ends_at') then 'A time, ISO 8601: 2026-11-23T09:00:00+00:00.'
                when mistyped in ('priority', 'max_attempts', 'missed_limit') then 'A whole number.'
                when mistyped = 'every' then 'Seconds, from 1 to ten years.'
                when mistyped in ('jitter', 'grace') then seconds
                when mistyped = 'at_startup' then 'true or false.'
                else 'Text.' end;
        when cardinality(timings) <> 1 then
            problem := case when timings = '{}' then 'no timing' else array_to_string(timings, ', ') || ': given together' end;
            remedy := 'Give one of cron, every, at and at_startup.';
        when definition ->> 'seconds' not in ('first', 'last') then
            problem := format('seconds: %s is none', pgqueue.as_given(definition ->> 'seconds'));
            remedy := 'first or last: where the seconds of a cron expression of six fields are.';
        when definition ? 'seconds' and not definition ? 'cron' then
            problem := 'seconds: there is no cron';
            remedy := 'It says where the seconds of a cron expression of six fields are: leave it out.';
        when length(definition ->> 'cron') > 500 then
            problem := format('cron: %s characters', length(definition ->> 'cron'));
            remedy := 'At most 500 characters.';
        when cardinality(regexp_split_to_array(btrim(definition ->> 'cron'), '\s+'))
             <> (case when definition ->> 'cron' ~ '^\s*@' then 1 when definition ? 'seconds' then 6 else 5 end) then
            problem := format('cron: %s has %s fields', pgqueue.as_given(definition ->> 'cron', 100),
                              cardinality(regexp_split_to_array(btrim(definition ->> 'cron'), '\s+')));
            remedy := 'minute hour day month weekday; a sixth field, for seconds, needs seconds => ''first'' or ''last''.';
        when not (definition ->> 'every')::numeric between 1 and 315360000 then
            problem := format('every: %s is out of range', left(definition ->> 'every', 40));
            remedy := 'Seconds, from 1 to ten years.';
        when not (definition ->> 'jitter')::numeric between 0 and 315360000 then
            problem := format('jitter: %s is out of range', left(definition ->> 'jitter', 40));
            remedy := seconds;
        when not (definition ->> 'grace')::numeric between 0 and 315360000 then
            problem := format('grace: %s is out of range', left(definition ->> 'grace', 40));
            remedy := seconds;
        when definition ->> 'missed' not in ('skip', 'once', 'all') then
            problem := format('missed: %s is none', pgqueue.as_given(definition ->> 'missed'));
            remedy := 'skip, once or all.';
        when not (definition ->> 'missed_limit')::numeric between 1 and 1000 then
            problem := format('missed_limit: %s is out of range', left(definition ->> 'missed_limit', 40));
            remedy := 'From 1 to 1000.';
        when definition ->> 'overlap' not in ('allow', 'skip', 'queue') then
            problem := format('overlap: %s is none', pgqueue.as_given(definition ->> 'overlap'));
            remedy := 'allow, skip or queue.';
        when absurd is not null then
            problem := format('%s: %s is out of range', absurd, left(definition ->> absurd, 40));
            remedy := 'From the year 1970 to 2199.';
        when exists (select from unnest(array['at', 'starts_at', 'ends_at']) as t (key)
                      where not (definition ->> t.key)::timestamptz between '1970-01-01' and '2199-12-31') then
            problem := 'at, starts_at, ends_at: out of range';
            remedy := 'From 1970 to 2199.';
        when (definition ->> 'starts_at')::timestamptz > (definition ->> 'ends_at')::timestamptz then
            problem := 'ends_at: it lies before starts_at';
            remedy := 'No due time would be left.';
        when definition -> 'options' ? 'unique' then
            problem := 'options.unique: a schedule has none';
            remedy := 'overlap says what happens while its last job is unfinished.';
        -- the view takes 15 ms, so it is asked for the first schedule of a zone
        when definition ->> 'tz' <> 'UTC'
             and not exists (select from pgqueue.schedules as s where s.tz = definition ->> 'tz')
             and not exists (select from pg_catalog.pg_timezone_names as z where z.name = definition ->> 'tz') then
            problem := format('tz: there is no time zone %s', pgqueue.as_given(definition ->> 'tz'));
            remedy := 'A name such as Europe/Paris.';
        else
            begin
                perform pgqueue.reject_job(
                    definition ->> 'task', coalesce(definition -> 'args', '{}'), definition ->> 'queue',
                    (definition ->> 'priority')::integer, null, null, (definition ->> 'max_attempts')::integer, null, null,
                    definition -> 'options');
                return;
            exception when sqlstate 'PQ001' or sqlstate 'PQ003' then
                code := sqlstate;
                get stacked diagnostics problem = message_text, remedy = pg_exception_hint;
            end;
    end case;
    raise exception using errcode = code, message = place || problem, hint = remedy;
end $$;
comment on function pgqueue.reject_schedule(text, jsonb) is
'Private. Raises PQ001 or PQ003 naming the first bad part of a schedule, with a hint; returns when there is none.';

-- sql/2_functions/shared/reject_call.sql
-- What functions say of a call that is none: SQLSTATE PQ001, one line that names the argument and what was given, and a hint.
-- Called by the functions of producer/, worker/, operator/ and upkeep/, in most of them after a cheap test has failed.

-- A value as a message shows it: quoted, in one line, with nothing in it that moves a terminal's cursor.
-- Called by whatever refuses text. Locks: none.
create function pgqueue.as_given(given text, most integer default 40)
returns text language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    return quote_nullable(regexp_replace(left(given, most), '[[:cntrl:]]', '?', 'g'));
end $$;
comment on function pgqueue.as_given(text, integer) is 'Private. The first characters of a value, quoted, for a message of one line.';

-- Called for a number that is missing or out of bounds. Locks: none.
create function pgqueue.reject_range(argument text, given text, bounds text)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'PQ001', message = format('%s: %s is out of range', argument, coalesce(given, 'null')), hint = bounds;
end $$;
comment on function pgqueue.reject_range(text, text, text) is 'Private. Raises PQ001 for a number that is missing or out of bounds.';

-- Seconds that an interval can be made of. Called by upkeep and statistics, for which it is nothing. Locks: none.
create function pgqueue.checked_seconds(argument text, given double precision)
returns double precision language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if not coalesce(given between 0 and 315360000, false) then
        perform pgqueue.reject_range(argument, given::text, 'Seconds, from 0 to ten years.');
    end if;
    return given;
end $$;
comment on function pgqueue.checked_seconds(text, double precision) is 'Private. The seconds given; raises PQ001 when they are none.';

-- Called by the functions that search. `most`: the argument that bounds them, and what was given. Locks: none.
create function pgqueue.reject_search(argument text, most integer, of_args jsonb)
returns void language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if most < 0 then
        perform pgqueue.reject_range(argument, most::text, 'From 0; null: as many as there are.');
    end if;
    if jsonb_typeof(of_args) <> 'object' then
        raise exception using errcode = 'PQ001', message = 'of_args: expected a JSON object, got a JSON ' || jsonb_typeof(of_args),
            hint = 'A part of the args: {"user_id": 7}.';
    end if;
end $$;
comment on function pgqueue.reject_search(text, integer, jsonb) is
'Private. Raises PQ001 for filters that are none; returns when they can be searched by.';

-- Called by the endings for arrays that do not belong together. Locks: none.
create function pgqueue.reject_lengths(arguments text, lengths integer[])
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'PQ001',
        message = format('%s: arrays of different lengths: %s', arguments, array_to_string(lengths, ', ', 'null')),
        hint = 'One element each for a job.';
end $$;
comment on function pgqueue.reject_lengths(text, integer[]) is 'Private. Raises PQ001 for arrays of different lengths.';

-- Whether JSON is an array of what has an id and a lease; null: null. Called by fail, complete_with_results, note_progress,
-- note_reports, into which it is inlined. Strict: a key that is missing is none of them, and matches no job.
-- Locks: none.
create function pgqueue.are_claims(items jsonb)
returns boolean language sql immutable parallel safe
return jsonb_typeof(items) = 'array' and not jsonb_path_exists(items, 'strict $[*] ? (@.type() != "object"
    || @.id.type() != "number" || @.id.floor() != @.id || @.id < -9223372036854775808 || @.id > 9223372036854775807
    || @.lease.type() != "number" || @.lease.floor() != @.lease || @.lease < -9223372036854775808 || @.lease > 9223372036854775807
    || @.delay.type() != "null" && @.delay.type() != "number" || @.delay > 1e300 || @.delay < -1e300)');
comment on function pgqueue.are_claims(jsonb) is 'Private. Whether this is an array of {id, lease, delay}, each a number.';

-- Called when it is not. Locks: none.
create function pgqueue.reject_claims(argument text, items jsonb)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    remedy constant text := 'An array of objects: {"id": 4711, "lease": -42}.';
    item record;
begin
    if jsonb_typeof(items) <> 'array' then
        raise exception using errcode = 'PQ001', message = format('%s: expected a JSON array, got a JSON %s', argument, jsonb_typeof(items)),
            hint = remedy;
    end if;
    for item in
        select i.claim, i.n - 1 as place from jsonb_array_elements(items) with ordinality as i (claim, n)
         where not pgqueue.are_claims(jsonb_build_array(i.claim)) order by i.n limit 1
    loop
        raise exception using errcode = 'PQ001', message = case
                when jsonb_typeof(item.claim) <> 'object'
                then format('%s: item %s: expected a JSON object, got a JSON %s', argument, item.place, jsonb_typeof(item.claim))
                else format('%s: item %s: id %s, lease %s, delay %s: expected whole numbers, and seconds', argument, item.place,
                            coalesce(pgqueue.as_given(item.claim ->> 'id'), 'null'),
                            coalesce(pgqueue.as_given(item.claim ->> 'lease'), 'null'),
                            coalesce(pgqueue.as_given(item.claim ->> 'delay'), 'null')) end,
            hint = remedy;
    end loop;
end $$;
comment on function pgqueue.reject_claims(text, jsonb) is 'Private. Raises PQ001 naming the first item that has no id and lease.';

-- sql/2_functions/shared/reject_job.sql
-- Says what is wrong with a job, and refuses it with SQLSTATE PQ001 (PQ003 for args) and a hint.
-- Called by enqueue and enqueue_many only after their cheap test has failed. Locks: none.
create function pgqueue.reject_job(
    task text, args jsonb, queue text, priority integer, run_at timestamptz, delay double precision,
    max_attempts integer, unique_key text, idempotency_key text, options jsonb, item bigint default null
) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    place constant text := coalesce('item ' || item || ': ', '');
    problem text;
    remedy text;
begin
    if args is null or jsonb_typeof(args) <> 'object' then
        raise exception using errcode = 'PQ003',
            message = place || 'args: expected a JSON object, got ' || coalesce('a JSON ' || jsonb_typeof(args), 'null'),
            hint = 'Name each argument: {"user_id": 7}.';
    end if;
    case
        when task is null or length(task) not between 1 and 200 or task ~ '[[:cntrl:]]' then
            problem := format('task: %s is not a name', pgqueue.as_given(task));
            remedy := 'A task''s name has 1 to 200 characters, none of them a control character.';
        when length(queue) not between 1 and 100 or queue ~ '[[:cntrl:]*"'']' then
            problem := format('queue: %s is not a name', pgqueue.as_given(queue));
            remedy := 'A queue''s name has 1 to 100 characters: no control characters, quotes or asterisks.';
        when priority not between 0 and 9 then
            problem := format('priority: %s is out of range', priority);
            remedy := 'Priorities go from 0 (first) to 9.';
        when run_at is not null and delay is not null then
            problem := 'run_at and delay: both given';
            remedy := 'Give one of them.';
        when not isfinite(run_at) or run_at >= '2200-01-02 00:00:00+00' then
            problem := format('run_at: %s is out of range', run_at);
            remedy := 'Up to the year 2199.';
        when not (delay >= 0 and delay <= 315360000) then
            problem := format('delay: %s is out of range', delay);
            remedy := 'Seconds, from 0 to ten years.';
        when max_attempts not between 1 and 32767 then
            problem := format('max_attempts: %s is out of range', max_attempts);
            remedy := 'From 1 to 32767.';
        when length(unique_key) not between 1 and 255 then
            problem := format('unique_key: %s characters', length(unique_key));
            remedy := 'From 1 to 255 characters.';
        when length(idempotency_key) not between 1 and 255 then
            problem := format('idempotency_key: %s characters', length(idempotency_key));
            remedy := 'From 1 to 255 characters.';
        when jsonb_typeof(options) <> 'object' then
            problem := 'options: expected a JSON object, got a JSON ' || jsonb_typeof(options);
            remedy := 'Keys: tags, metadata, retry, unique.';
        else
            if options ?| '{expires_at,expires_in}' then
                perform pgqueue.reject_expiry(options -> 'expires_at', options -> 'expires_in', place);
            end if;
            if options ? 'unique' then
                perform pgqueue.reject_unique(options -> 'unique', unique_key, run_at is not null or delay is not null, place);
            end if;
            return;
    end case;
    raise exception using errcode = 'PQ001', message = place || problem, hint = remedy;
end $$;
comment on function pgqueue.reject_job(text, jsonb, text, integer, timestamptz, double precision, integer, text, text, jsonb, bigint) is
'Private. Raises PQ001 or PQ003 naming the first bad argument, with a hint; returns when there is none.';

-- The same for when a job expires, for a worker reads it in the database, of many jobs at once. Called by reject_job.
-- Locks: none.
create function pgqueue.reject_expiry(expires_at jsonb, expires_in jsonb, place text) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(expires_at) <> 'null' and pgqueue.as_moment(expires_at) is null then
        raise exception using errcode = 'PQ001',
            message = place || format('options.expires_at: %s is no time', pgqueue.as_given(expires_at #>> '{}')),
            hint = 'ISO 8601, such as 2026-11-23T09:00:00+00:00.';
    end if;
    if jsonb_typeof(expires_in) <> 'null' and not (case when jsonb_typeof(expires_in) = 'number'
                                                        then expires_in::numeric between 0 and 315360000 else false end) then
        raise exception using errcode = 'PQ001', message = place || format('options.expires_in: %s is out of range', left(expires_in::text, 40)),
            hint = 'Seconds, from 0 to ten years.';
    end if;
end $$;
comment on function pgqueue.reject_expiry(jsonb, jsonb, text) is
'Private. Raises PQ001 for an options.expires_at or expires_in that is none; returns when they can be read.';

-- A time that JSON has as text, null when it is none. Called for what is to be refused. Locks: none.
create function pgqueue.as_moment(given jsonb) returns timestamptz language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return case when jsonb_typeof(given) = 'string' then (given #>> '{}')::timestamptz end;
exception when data_exception then
    return null;
end $$;
comment on function pgqueue.as_moment(jsonb) is 'Private. JSON text as a time; null when it is none.';

-- The same as reject_job for each job of a bulk, in order. Called by enqueue_many only after its cheap test has failed, or
-- before keys are taken. Locks: none.
create function pgqueue.reject_jobs(jobs jsonb) returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off
as $$
begin
    perform pgqueue.reject_job(j.task, coalesce(j.args, '{}'), j.queue, j.priority, j.run_at, j.delay, j.max_attempts,
                               j.unique_key, j.idempotency_key, j.options, j.n - 1)
       from rows from (jsonb_to_recordset(reject_jobs.jobs) as (task text, args jsonb, queue text, priority integer,
               run_at timestamptz, delay double precision, max_attempts integer, unique_key text,
               idempotency_key text, options jsonb)) with ordinality
            as j (task, args, queue, priority, run_at, delay, max_attempts, unique_key, idempotency_key, options, n)
      order by j.n;
    if jsonb_path_exists(jobs, 'strict $[*] ? (@.task.type() != "string" || @.queue.type() != "string" && @.queue.type() != "null")') then
        perform pgqueue.reject_types(jobs);  -- a number has become a name
    end if;
exception when data_exception then  -- a cast: of no object, of what is no number or no time
    perform pgqueue.reject_types(jobs);
    raise;
end $$;
comment on function pgqueue.reject_jobs(jsonb) is
'Private. Raises PQ001 or PQ003 naming the first bad job of a bulk by its place; returns when there is none.';

-- Says which job of a bulk is no object, or has a value that cannot be read. Called by enqueue_many and reject_jobs when one
-- has: of the numbers it takes plain digits, as enqueue_many does. Locks: none.
create function pgqueue.reject_types(jobs jsonb) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    item record;
    given text;
    problem text;
    remedy text;
begin
    for item in select i.job, i.n - 1 as place from jsonb_array_elements(jobs) with ordinality as i (job, n) order by i.n loop
        case
            when jsonb_typeof(item.job) <> 'object' then
                problem := format('expected a JSON object, got a JSON %s', jsonb_typeof(item.job));
                remedy := 'Keyed like the arguments of pgqueue.enqueue: {"task": "send_welcome", "args": {"user_id": 7}}.';
            when jsonb_typeof(item.job -> 'task') not in ('string', 'null') then
                problem := format('task: expected text, got a JSON %s', jsonb_typeof(item.job -> 'task'));
                remedy := 'A task''s name has 1 to 200 characters, none of them a control character.';
            when jsonb_typeof(item.job -> 'queue') not in ('string', 'null') then
                problem := format('queue: expected text, got a JSON %s', jsonb_typeof(item.job -> 'queue'));
                remedy := 'A queue''s name has 1 to 100 characters: no control characters, quotes or asterisks.';
            when item.job ->> 'priority' !~ '^(0|-?[1-9][0-9]{0,8})$' then
                problem := format('priority: %s is no whole number', pgqueue.as_given(item.job ->> 'priority'));
                remedy := 'Priorities go from 0 (first) to 9.';
            when item.job ->> 'max_attempts' !~ '^(0|-?[1-9][0-9]{0,8})$' then
                problem := format('max_attempts: %s is no whole number', pgqueue.as_given(item.job ->> 'max_attempts'));
                remedy := 'From 1 to 32767.';
            when pgqueue.as_number(item.job -> 'delay') is null and item.job ->> 'delay' is not null then
                problem := format('delay: %s is no number', pgqueue.as_given(item.job ->> 'delay'));
                remedy := 'Seconds, from 0 to ten years.';
            when pgqueue.as_moment(item.job -> 'run_at') is null and item.job ->> 'run_at' is not null then
                problem := format('run_at: %s is no time', pgqueue.as_given(item.job ->> 'run_at'));
                remedy := 'ISO 8601, such as 2026-11-23T09:00:00+00:00.';
            else
                continue;
        end case;
        raise exception using errcode = 'PQ001', message = format('item %s: %s', item.place, problem), hint = remedy;
    end loop;
end $$;
comment on function pgqueue.reject_types(jsonb) is
'Private. Raises PQ001 naming the first job of a bulk with a value that cannot be read; returns when there is none.';

-- A number that JSON has, null when it is none. Called by reject_types. Locks: none.
create function pgqueue.as_number(given jsonb) returns double precision language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (given #>> '{}')::double precision;
exception when data_exception then
    return null;
end $$;
comment on function pgqueue.as_number(jsonb) is 'Private. A JSON number, or text that is one; null when it is none.';

-- sql/2_functions/shared/reject_unique.sql
-- Says what is wrong with options.unique, and refuses it with SQLSTATE PQ001 and a hint.
-- Called by reject_job for a job that has it. Locks: none.
create function pgqueue.reject_unique(how jsonb, unique_key text, has_time boolean, place text) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    policy constant text := coalesce(how ->> 'on_conflict', 'keep');
    seconds constant text := 'Seconds, more than 0 and at most ten years.';
    stranger text;
    problem text;
    remedy text;
begin
    if jsonb_typeof(how) <> 'object' then
        raise exception using errcode = 'PQ001',
            message = place || 'options.unique: expected a JSON object, got a JSON ' || jsonb_typeof(how),
            hint = 'Keys: scope, period, on_conflict, max_delay.';
    end if;
    stranger := (select k.key from jsonb_object_keys(how) as k (key)
                  where k.key not in ('scope', 'period', 'on_conflict', 'max_delay') order by k.key limit 1);
    case
        when stranger is not null then
            problem := format('options.unique: there is no %s', pgqueue.as_given(stranger));
            remedy := 'Keys: scope, period, on_conflict, max_delay.';
        when unique_key is null then
            problem := 'options.unique: there is no unique_key';
            remedy := 'It says what the unique_key is to mean: give both.';
        when how ->> 'scope' not in ('unfinished', 'waiting') then
            problem := format('options.unique.scope: %s is none', pgqueue.as_given(how ->> 'scope'));
            remedy := 'unfinished or waiting.';
        when policy not in ('keep', 'replace', 'debounce', 'raise_priority', 'follow_up') then
            problem := format('options.unique.on_conflict: %s is none', pgqueue.as_given(policy));
            remedy := 'keep, replace, debounce, raise_priority or follow_up.';
        when jsonb_typeof(how -> 'period') <> 'number' or not (how ->> 'period')::numeric between 0.001 and 315360000 then
            problem := format('options.unique.period: %s is out of range', regexp_replace(left(coalesce(how ->> 'period', 'null'), 40), '[[:cntrl:]]', '?', 'g'));
            remedy := seconds;
        when jsonb_typeof(how -> 'max_delay') <> 'number' or not (how ->> 'max_delay')::numeric between 0.001 and 315360000 then
            problem := format('options.unique.max_delay: %s is out of range', regexp_replace(left(coalesce(how ->> 'max_delay', 'null'), 40), '[[:cntrl:]]', '?', 'g'));
            remedy := seconds;
        when how ? 'scope' and how ? 'period' then
            problem := 'options.unique.scope and period: both given';
            remedy := 'Give one of them: a period counts whatever state the job is in.';
        when policy = 'debounce' and not (how ? 'max_delay' and has_time) then
            problem := 'options.unique.on_conflict: debounce without ' || case when has_time then 'a max_delay' else 'a delay' end;
            remedy := 'delay is what a job is put off by, max_delay how far in all, counted from its enqueue.';
        when policy <> 'debounce' and how ? 'max_delay' then
            problem := 'options.unique.max_delay: it bounds a debounce, and this is ' || policy;
            remedy := 'Leave it out, or say on_conflict debounce.';
        when policy = 'follow_up' and (how ? 'period' or how ->> 'scope' = 'waiting') then
            problem := 'options.unique.on_conflict: follow_up goes with the scope unfinished alone';
            remedy := 'In the scope waiting a running job does not count: a new one is made beside it.';
        else
            return;
    end case;
    raise exception using errcode = 'PQ001', message = place || problem, hint = remedy;
end $$;
comment on function pgqueue.reject_unique(jsonb, text, boolean, text) is
'Private. Raises PQ001 naming the first bad part of options.unique, with a hint; returns when there is none.';

-- sql/2_functions/shared/run_due.sql
-- One due time of a schedule whose row the caller holds: its job and its row of the history, both or none.
-- Called by tick and run_schedule. Returns nulls when the due time has had its run.
-- Locks: those of enqueue. Index: schedule_runs_one_a_due_time.
create function pgqueue.run_due(
    held pgqueue.schedules, due_at timestamptz, policy text, missed integer, jitters boolean, out job_id bigint, out outcome text
) language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    met text;
    stored constant jsonb := coalesce(held.options, '{}') || jsonb_build_object('schedule', held.name, 'due_at', run_due.due_at);
begin
    if exists (select from pgqueue.schedule_runs as r where r.schedule = held.name and r.due_at = run_due.due_at) then
        return;
    end if;
    outcome := policy;
    if policy <> 'missed' then
        select e.id, e.outcome into job_id, met
          from pgqueue.enqueue(
              held.task, held.args, held.queue, held.priority,
              delay => case when jitters and held.jitter > 0 then random() * held.jitter end,
              max_attempts => held.max_attempts,
              unique_key => case when held.overlap <> 'allow' then 'schedule:' || held.name end,
              options => case held.overlap
                  when 'queue' then stored || '{"unique": {"on_conflict": "follow_up"}}' else stored end) as e;
        if met = 'kept' then
            outcome := case held.overlap when 'skip' then 'overlapped' else 'joined' end;
        end if;
    end if;
    insert into pgqueue.schedule_runs (schedule, due_at, ran_at, outcome, missed, job_id)
    values (held.name, run_due.due_at, clock_timestamp(), run_due.outcome, run_due.missed, run_due.job_id);
end $$;
comment on function pgqueue.run_due(pgqueue.schedules, timestamptz, text, integer, boolean) is
'Private. Enqueues the job of a due time, unless it was missed, and notes it. Returns the job and the outcome; nulls: it has had its run.';

-- Notes how the jobs of a schedule's runs have ended, as far as they have, so that it is known when they are forgotten.
-- Called by tick and retain. A job that is on no record any more is noted as well, or it would be looked up for ever.
-- Locks: the runs' rows (skip locked). Index: schedule_runs_unsettled, those of look.
create function pgqueue.settle_runs(of_schedule text)
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_indexscan = on set enable_indexonlyscan = on
as $$
declare
    run record;
begin
    for run in
        with open as materialized (
            select r.due_at, r.job_id from pgqueue.schedule_runs as r
             where r.schedule = of_schedule and r.state is null and r.job_id is not null
             order by r.due_at limit 20 for update skip locked
        )
        select o.due_at, coalesce(j.state, 'unknown') as state
          from open as o left join pgqueue.look(array(select u.job_id from open as u)) as j on j.id = o.job_id
    loop
        update pgqueue.schedule_runs as r set state = run.state
         where r.schedule = of_schedule and r.due_at = run.due_at
           and run.state in ('completed', 'cancelled', 'dead', 'unknown');
    end loop;
end $$;
comment on function pgqueue.settle_runs(text) is 'Private. Notes the final states of the jobs of a schedule''s earlier runs, at most 20.';

-- sql/2_functions/shared/take_keys.sql
-- Takes the unique key of a new job, or does to the job that holds it what `how` asks for (options.unique of enqueue).
-- Called by enqueue, enqueue_many, replay. Waits for a transaction that has taken the same key and has not ended.
-- Locks: RowExclusive on unique_keys, the key's row when it is taken; those of meet_waiting. Index: the primary keys.
--
-- Why no race makes two. The primary key decides who is first, at every isolation level. Where its holder is, is noted
-- nowhere (each claim would have to); it is looked up here, and only when the key is held:
-- - One statement looks into all the tables. A move from one to the next is one transaction, so a snapshot has the
--   holder once; or not at all, and then it has ended.
-- - A holder that waits is locked where it was seen (but in the scope unfinished, when it is only kept: there it may as
--   well run). claim and promote skip what is locked, so it goes on waiting until this transaction has ended, and starts
--   when it can see what that wrote. If it had moved on it is not found there, and all is looked at again.
-- - A holder that runs is read and not locked: no ending may wait for a transaction that somebody keeps open. It may end
--   or come back a moment after the look; so it may a moment after the commit.
-- - A key is taken over from the holder that was seen, with its row locked, so one of many does. An ending that finds its
--   key locked leaves it behind (free_keys); a key whose holder has ended belongs to whoever comes first.
-- Above READ COMMITTED each of these steps raises 40001 when it meets what is younger than the snapshot.
create function pgqueue.take_unique_key(
    of_task text, of_key text, own_id bigint, how jsonb default null, job jsonb default null,
    out holder bigint, out outcome text
) language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    period constant interval := make_interval(secs => (how ->> 'period')::double precision);
    of_kind constant text := case when period is null then 'unique' else 'period' end;
    policy constant text := coalesce(how ->> 'on_conflict', 'keep');
    running_counts constant boolean := coalesce(how ->> 'scope', 'unfinished') = 'unfinished';
    held_until timestamptz;
    place text;
begin
    loop
        insert into pgqueue.unique_keys (kind, task, key, job_id, expires_at)
        values (of_kind, of_task, of_key, own_id, clock_timestamp() + period)
        on conflict (kind, task, key) do nothing;
        exit when found;
        select k.job_id, k.expires_at into holder, held_until from pgqueue.unique_keys as k
         where k.kind = of_kind and k.task = of_task and k.key = of_key;
        continue when not found;  -- its job ended between the two statements: once more
        if held_until <= clock_timestamp() then
            update pgqueue.unique_keys as k set job_id = own_id, expires_at = clock_timestamp() + period
             where k.kind = of_kind and k.task = of_task and k.key = of_key
               and k.job_id = holder and k.expires_at <= clock_timestamp();
            exit when found;
            continue;
        end if;
        if period is not null and policy = 'keep' then
            outcome := 'kept';
            return;
        end if;
        place := pgqueue.unfinished_as(holder);
        if period is null and (place is null or place = 'running' and not running_counts) then
            -- a job that waits for the end of this one comes first, if its turn has not been given to it yet
            continue when place is null and pgqueue.unblock(array[holder]) > 0;
            perform from pgqueue.unique_keys as k
              where k.kind = of_kind and k.task = of_task and k.key = of_key and k.job_id = holder for update;
            -- once more, now that nobody else can have the key: a replay may have brought it back
            if found and pgqueue.unfinished_as(holder) is not distinct from place then
                update pgqueue.unique_keys as k set job_id = own_id
                 where k.kind = of_kind and k.task = of_task and k.key = of_key;
                exit;
            end if;
        elsif place = 'running' and policy = 'follow_up' then
            insert into pgqueue.blocked_jobs (id, after_id, run_at, created_at, lane, attempt, max_attempts, crashes,
                                              queue, task, args, unique_key, options)
            select j.id, holder, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task,
                   j.args, j.unique_key, j.options
              from jsonb_populate_record(null::pgqueue.blocked_jobs, job) as j
            on conflict (after_id) do nothing;
            if found then
                holder := own_id;
                outcome := 'follow_up';
                return;
            end if;
            -- locked, as one that waits is: it starts when it can see what this transaction has written
            select b.id into holder from pgqueue.blocked_jobs as b where b.after_id = holder for key share;
            if found then
                outcome := 'kept';
                return;
            end if;
        elsif place is null or place = 'running' or running_counts and policy = 'keep' then
            outcome := 'kept';
            return;
        else
            outcome := pgqueue.meet_waiting(holder, how, job);
            if outcome is not null then
                return;
            end if;
        end if;
    end loop;
    holder := own_id;
    outcome := 'created';
end $$;
comment on function pgqueue.take_unique_key(text, text, bigint, jsonb, jsonb) is
'Private. outcome created: the key is now own_id''s; follow_up: the job waits in blocked_jobs for the holder''s end; else the holder, and what was done to it: kept, replaced, postponed or raised.';

-- Locks the waiting jobs that a bulk may change or hold back when it takes its unique keys: all at once, table by table, by id,
-- as cancel does. `is_new`: which of the jobs want their unique key, the others were found by their idempotency key.
-- Called by enqueue_many, before the first unique key. Locks: the jobs' rows, as take_unique_key and meet_waiting. Index: the
-- primary keys, blocked_jobs_one_follow_up_a_job.
--
-- A holder that comes by its key between this look and the bulk's turn is locked out of order, by meet_waiting.
create function pgqueue.lock_key_holders(jobs jsonb, is_new boolean[])
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
    holders bigint[];
    followed bigint[];
    only_kept boolean;
begin
    select array_agg(k.job_id), array_agg(k.job_id) filter (where j.policy = 'follow_up'),
           bool_and(j.policy in ('keep', 'follow_up'))
      into holders, followed, only_kept
      from (select g.task, g.unique_key, g.how -> 'period' is not null as for_a_while,
                   coalesce(g.how ->> 'scope', 'unfinished') = 'unfinished' as running_counts,
                   coalesce(g.how ->> 'on_conflict', 'keep') as policy
              from (select r.task, r.unique_key, r.options -> 'unique' as how
                      from rows from (jsonb_to_recordset(jobs) as (task text, unique_key text, options jsonb), unnest(is_new))
                           as r (task, unique_key, options, is_new)
                     where r.is_new and r.unique_key is not null) as g
             where g.how is not null) as j
     cross join lateral (
        select u.job_id from pgqueue.unique_keys as u
         where u.kind = case when j.for_a_while then 'period' else 'unique' end and u.task = j.task and u.key = j.unique_key
           and coalesce(u.expires_at > clock_timestamp(), true)
         limit 1) as k
     where j.policy <> 'keep' or not (j.running_counts or j.for_a_while);
    if only_kept then
        perform from pgqueue.scheduled_jobs as s where s.id = any (holders) order by s.id for key share;
        perform from pgqueue.ready_jobs as r where r.id = any (holders) order by r.id for key share;
    elsif holders is not null then
        perform from pgqueue.scheduled_jobs as s where s.id = any (holders) order by s.id for update;
        perform from pgqueue.ready_jobs as r where r.id = any (holders) order by r.id for update;
    end if;
    if followed is not null then
        perform from pgqueue.blocked_jobs as b where b.after_id = any (followed) order by b.id for key share;
    end if;
end $$;
comment on function pgqueue.lock_key_holders(jsonb, boolean[]) is
'Private. Locks the waiting holders of the unique keys of a bulk that may change them, in the order of their ids.';

-- Where an unfinished job of a unique key is: scheduled, ready or running; null: it has ended. Called by take_unique_key,
-- unblock. Locks: none. Index: the primary keys.
create function pgqueue.unfinished_as(job_id bigint)
returns text language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $$
begin
    return (select 'scheduled' from pgqueue.scheduled_jobs as s where s.id = unfinished_as.job_id
            union all select 'ready' from pgqueue.ready_jobs as r where r.id = unfinished_as.job_id
            union all select 'running' from pgqueue.running_jobs as a where a.id = unfinished_as.job_id);
end $$;
comment on function pgqueue.unfinished_as(bigint) is
'Private. The state of a job that holds a unique key: scheduled, ready or running; null when it has ended.';

-- Takes the idempotency key of a new job, or finds the job that holds it. Called by enqueue, enqueue_many.
-- Waits for a transaction that has taken the same key and has not ended.
-- Locks: RowExclusive on unique_keys, the key's row. Index: unique_keys_one_job_a_key.
create function pgqueue.take_idempotency_key(of_task text, of_key text, own_id bigint)
returns bigint language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
declare
    holder bigint;
begin
    loop
        insert into pgqueue.unique_keys as k (kind, task, key, job_id, expires_at)
        values ('idempotency', of_task, of_key, own_id, clock_timestamp() + interval '24 hours')
        on conflict (kind, task, key) do update
            set job_id = excluded.job_id, expires_at = excluded.expires_at
            where k.expires_at <= clock_timestamp();
        if found then
            return own_id;
        end if;
        select k.job_id into holder from pgqueue.unique_keys as k
         where k.kind = 'idempotency' and k.task = of_task and k.key = of_key;
        if found then
            return holder;
        end if;  -- else it expired between the two statements: once more
    end loop;
end $$;
comment on function pgqueue.take_idempotency_key(text, text, bigint) is
'Private. Returns own_id when the key is now its own, else the job that holds it.';

-- sql/2_functions/shared/tell_waiters.sql
-- Tells those who wait for the end of these jobs. Called by the endings after they have moved them, in a statement of its own
-- (VOLATILE: a fresh snapshot), and only when there is a waiter at all. Locks: none, unless it notifies (then the
-- database-wide NOTIFY lock at commit). Index: waiters_one_row_a_period.
create function pgqueue.tell_waiters(ids bigint[])
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
    told constant bigint[] := ids || 0::bigint;  -- 0: who waits for whatever ends
    since constant timestamptz := now() - interval '35 seconds';
begin
    if cardinality(ids) = 0 or current_setting('pgqueue.notify', true) = 'off' then
        return;
    end if;
    if cardinality(ids) > 100 then  -- fewer waiters than jobs, most likely
        perform pg_notify(w.channel, w.job_id::text)
           from (select distinct s.channel, s.job_id from pgqueue.waiters as s
                  where s.period > since and s.job_id = any (told)) as w;
    else
        perform pg_notify(w.channel, w.job_id::text)
           from (select distinct s.channel, s.job_id
                   from generate_series(date_bin('10 seconds', since, '2000-01-01'), clock_timestamp(), '10 seconds') as p (period)
                  cross join unnest(told) as i (id)
                  cross join lateral (select h.channel, h.job_id from pgqueue.waiters as h
                                       where h.period = p.period and h.job_id = i.id limit 1000) as s) as w;
    end if;
end $$;
comment on function pgqueue.tell_waiters(bigint[]) is
'Private. Notifies the channels of those who wait for these jobs, with the job''s id.';

-- sql/2_functions/shared/unblock.sql
-- Gives the turn to the jobs that waited for jobs which have ended: each takes the key, and becomes ready or scheduled.
-- Called by free_keys, which has just deleted the keys, so that nobody else has them and nothing is waited for; by
-- take_unique_key; by unblock_stranded. Locks: the jobs' rows (skip locked), their keys. Index: blocked_jobs_one_follow_up_a_job.
create function pgqueue.unblock(ended bigint[])
returns integer language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    follower record;
    lines text[];
    later timestamptz;
    unblocked integer := 0;
begin
    for follower in
        select b.id, b.after_id, b.task, b.unique_key, b.queue from pgqueue.blocked_jobs as b
         where b.after_id = any (ended) order by b.id for update skip locked
    loop
        perform from pgqueue.unique_keys as k
          where k.kind = 'unique' and k.task = follower.task and k.key = follower.unique_key
            and k.job_id = follower.after_id for update;
        if found then
            continue when pgqueue.unfinished_as(follower.after_id) is not null;  -- a replay has brought it back
            update pgqueue.unique_keys as k set job_id = follower.id
             where k.kind = 'unique' and k.task = follower.task and k.key = follower.unique_key;
        else
            insert into pgqueue.unique_keys (kind, task, key, job_id)
            values ('unique', follower.task, follower.unique_key, follower.id)
            on conflict (kind, task, key) do nothing;
        end if;
        if not found then
            -- Somebody came first, and has the key: then after that one. If a job waits for it already, the next round looks.
            update pgqueue.blocked_jobs as b set after_id = k.job_id
              from pgqueue.unique_keys as k
             where b.id = follower.id and k.kind = 'unique' and k.task = follower.task and k.key = follower.unique_key
               and not exists (select from pgqueue.blocked_jobs as o where o.after_id = k.job_id);
            continue;
        end if;
        with gone as (
            delete from pgqueue.blocked_jobs as b where b.id = follower.id
            returning b.id, b.run_at, b.created_at, b.lane, b.attempt, b.max_attempts, b.crashes, b.queue, b.task, b.args,
                      b.unique_key, b.options, clock_timestamp() as seen_at  -- under the locks: see enqueue
        ), early as (
            insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                                args, unique_key, options)
            select g.id, g.run_at, g.created_at, g.lane, g.attempt, g.max_attempts, g.crashes, g.queue, g.task, g.args,
                   g.unique_key, g.options
              from gone as g where g.run_at > g.seen_at
            returning run_at
        ), due as (
            insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                            args, unique_key, options)
            select g.id, g.seen_at, g.created_at, g.lane, g.attempt, g.max_attempts, g.crashes, g.queue, g.task, g.args,
                   g.unique_key, g.options
              from gone as g where g.run_at <= g.seen_at
            returning queue
        )
        select array_agg(d.queue), (select e.run_at from early as e) into lines, later from due as d;
        if later is not null then
            perform pgqueue.wake_leader(later);
        end if;
        if lines is not null then
            perform pgqueue.notify_sleepers(follower.queue, 1);
        end if;
        unblocked := unblocked + 1;
    end loop;
    return unblocked;
end $$;
comment on function pgqueue.unblock(bigint[]) is
'Private. Makes the jobs ready, or scheduled, that waited for the end of these. Returns how many.';

-- The same for jobs whose predecessor ended before they were committed: its ending could not see them.
-- Called by the leader of upkeep, every round. It waits no longer than a moment for a key that somebody is taking.
-- Locks: those of unblock. Reads blocked_jobs whole: it holds one job a running job at the most.
create function pgqueue.unblock_stranded()
returns integer language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set lock_timeout = '100ms'
as $$
declare
    stranded bigint;
    unblocked integer := 0;
begin
    for stranded in
        select b.after_id from pgqueue.blocked_jobs as b
         where not exists (select from pgqueue.running_jobs as r where r.id = b.after_id)
           and not exists (select from pgqueue.scheduled_jobs as s where s.id = b.after_id)
           and not exists (select from pgqueue.ready_jobs as w where w.id = b.after_id)
         order by b.id limit 100
    loop
        begin
            unblocked := unblocked + pgqueue.unblock(array[stranded]);
        exception when lock_not_available or unique_violation then
            null;  -- a producer is about to take the key: the next round sees what came of it
        end;
    end loop;
    return unblocked;
end $$;
comment on function pgqueue.unblock_stranded() is
'Private. Unblocks jobs whose predecessor is no longer unfinished. Returns how many.';

-- sql/2_functions/shared/wake_leader.sql
-- Notifies the leader of upkeep when something falls due before it looks again.
-- Called by whatever has just inserted into scheduled_jobs (after the insert: see upkeep/keep_time.sql) or changed a
-- schedule. Locks: none.
create function pgqueue.wake_leader(due timestamptz)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if extract(epoch from due) * 1000 < (select n.last_value from pgqueue.next_look as n) then
        perform pg_notify('pgqueue_upkeep_' || l.supervisor_id, '') from pgqueue.leadership as l
          where current_setting('pgqueue.notify', true) is distinct from 'off';
    end if;
end $$;
comment on function pgqueue.wake_leader(timestamptz) is
'Private. Notifies the leader on channel pgqueue_upkeep_<supervisor_id> when `due` is sooner than its next look.';

-- sql/2_functions/testing/travel.sql
-- Lets time pass for the jobs that wait: all their times move back by `seconds`, the clock stays as it is.
-- Called by tests alone (pgqueue.testing.travel), as the owner: it is granted to nobody. Locks: the rows it moves.
-- Scans its tables. What becomes due is due in the order in which it would have been; promote makes it ready.
--
-- Hazard: no job is ever scheduled for the past, or promotion, which starts at a proven mark, would never see it. So the
-- clock is read under the table's lock, as by enqueue, and what is due gets the moments right after it, one each.
create function pgqueue.travel(seconds double precision)
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
declare
    passed constant interval := make_interval(secs => travel.seconds);
    present timestamptz;
    due integer;
begin
    if not (travel.seconds >= 0 and travel.seconds <= 315360000) then
        raise exception using errcode = 'PQ001', message = format('travel: %s is out of range', travel.seconds),
            hint = 'Seconds, from 0 to ten years: time goes forward only.';
    end if;
    lock table pgqueue.scheduled_jobs in row exclusive mode;
    present := clock_timestamp();
    with moved as (
        select s.id, s.run_at - passed as run_at,
               row_number() over (order by s.run_at, s.id) * interval '1 microsecond' as turn
          from pgqueue.scheduled_jobs as s
    )
    update pgqueue.scheduled_jobs as s
       set run_at = greatest(m.run_at, present + m.turn), created_at = s.created_at - passed,
           options = case when s.options ? 'expires_at' then jsonb_set(s.options, '{expires_at}',
               to_jsonb((s.options ->> 'expires_at')::timestamptz - passed)) else s.options end
      from moved as m where m.id = s.id;
    update pgqueue.ready_jobs as r
       set run_at = r.run_at - passed, created_at = r.created_at - passed,
           options = case when r.options ? 'expires_at' then jsonb_set(r.options, '{expires_at}',
               to_jsonb((r.options ->> 'expires_at')::timestamptz - passed)) else r.options end;
    update pgqueue.blocked_jobs as b
       set run_at = b.run_at - passed, created_at = b.created_at - passed,
           options = case when b.options ? 'expires_at' then jsonb_set(b.options, '{expires_at}',
               to_jsonb((b.options ->> 'expires_at')::timestamptz - passed)) else b.options end;
    update pgqueue.unique_keys as k set expires_at = k.expires_at - passed where k.expires_at is not null;
    perform pgqueue.wake_leader(clock_timestamp());
    select count(*) into due from pgqueue.scheduled_jobs as s where s.run_at <= clock_timestamp();
    return due;
end $$;
comment on function pgqueue.travel(double precision) is
'For tests: moves the times of all jobs that wait, and of idempotency keys, back by `seconds`. Returns how many scheduled jobs are due now.';

-- sql/2_functions/upkeep/count_depths.sql
-- Counts the jobs of each state by queue and task, for views and thresholds. Called by the leader when upkeep says that it is
-- due: what is said there bounds it to a twentieth of the time.
-- Locks: an advisory one, shared with roll_up, row exclusive on its own tables; it waits for nobody.
-- Scans the state tables, in one statement, so that a job is counted once; on one processor, for the others are the workers'.
create function pgqueue.count_depths()
returns double precision language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set max_parallel_workers_per_gather = 0 set plan_cache_mode = force_custom_plan
set enable_sort = off
as $$
declare
    began_at constant timestamptz := clock_timestamp();
    ids bigint;
    places bigint;
    moves boolean;
    took double precision;
begin
    perform set_config('synchronous_commit', 'off', true);
    if not pg_try_advisory_xact_lock(hashtextextended('pgqueue.figures', 0)) then
        return null;
    end if;
    -- before the count, so that what comes meanwhile makes the next one due
    select s.last_value + s.is_called::integer into ids from pgqueue.job_ids as s;
    select s.last_value + s.is_called::integer into places from pgqueue.positions as s;
    with counted as materialized (
        select j.queue, j.task, 'ready' as state, count(*) as jobs, min(j.run_at) as oldest_at
          from pgqueue.ready_jobs as j group by j.queue, j.task
        union all
        select j.queue, j.task, 'scheduled', count(*), null from pgqueue.scheduled_jobs as j group by j.queue, j.task
        union all
        select j.queue, j.task, 'blocked', count(*), null from pgqueue.blocked_jobs as j group by j.queue, j.task
        union all
        select j.queue, j.task, 'running', count(*), min(j.claimed_at) from pgqueue.running_jobs as j group by j.queue, j.task
        union all
        select j.queue, j.task, 'dead', count(*), null from pgqueue.dead_letters as j group by j.queue, j.task
    ), depths as (
        select c.queue, c.task, coalesce(sum(c.jobs) filter (where c.state = 'ready'), 0)::bigint as ready,
               coalesce(sum(c.jobs) filter (where c.state = 'scheduled'), 0)::bigint as scheduled,
               coalesce(sum(c.jobs) filter (where c.state = 'blocked'), 0)::bigint as blocked,
               coalesce(sum(c.jobs) filter (where c.state = 'running'), 0)::bigint as running,
               coalesce(sum(c.jobs) filter (where c.state = 'dead'), 0)::bigint as dead,
               min(c.oldest_at) filter (where c.state = 'ready') as oldest_ready_at,
               min(c.oldest_at) filter (where c.state = 'running') as oldest_claimed_at
          from counted as c group by c.queue, c.task
    ), none_left as (
        update pgqueue.depths as d
           set ready = 0, scheduled = 0, blocked = 0, running = 0, dead = 0, oldest_ready_at = null, oldest_claimed_at = null
         where d.ready + d.scheduled + d.blocked + d.running + d.dead > 0
           and not exists (select from counted as c where c.queue = d.queue and c.task = d.task)
    ), written as (
        insert into pgqueue.depths as d (queue, task, ready, scheduled, blocked, running, dead, oldest_ready_at,
                                         oldest_claimed_at)
        select n.queue, n.task, n.ready, n.scheduled, n.blocked, n.running, n.dead, n.oldest_ready_at, n.oldest_claimed_at
          from depths as n
        on conflict on constraint depths_one_row_a_task do update
           set ready = excluded.ready, scheduled = excluded.scheduled, blocked = excluded.blocked,
               running = excluded.running, dead = excluded.dead, oldest_ready_at = excluded.oldest_ready_at,
               oldest_claimed_at = excluded.oldest_claimed_at
         where (d.ready, d.scheduled, d.blocked, d.running, d.dead, d.oldest_ready_at, d.oldest_claimed_at)
               is distinct from (excluded.ready, excluded.scheduled, excluded.blocked, excluded.running, excluded.dead,
                                 excluded.oldest_ready_at, excluded.oldest_claimed_at)
    )
    select coalesce(bool_or(n.ready > 0 or n.running > 0), false) into moves from depths as n;
    delete from pgqueue.depths as d
     where d.ready + d.scheduled + d.blocked + d.running + d.dead = 0 and d.rolled_up = 0 and d.carried = 0;
    took := greatest(0, extract(epoch from clock_timestamp() - began_at));
    update pgqueue.depth_count as c
       set counted_at = began_at, seconds = took, next_id = ids, next_position = places, is_moving = moves;
    return took;
end $$;
comment on function pgqueue.count_depths() is
'Counts the jobs of each state by queue and task. Returns how many seconds it took; null: somebody else is at it, and nothing was done.';

-- Whether a count is due: 10 s after the last one, or when a minute has ended since, but never before twenty times what the last
-- one took; and not while nothing has changed, for it costs an idle database a scan. Called by upkeep. Locks: none.
create function pgqueue.depths_due()
returns boolean language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
    return (
        select c.counted_at > clock_timestamp()  -- before the clock was set back
            or c.counted_at + make_interval(secs => 21 * c.seconds) <= clock_timestamp()
               and (c.counted_at + interval '10 seconds' <= clock_timestamp()
                    or date_trunc('minute', c.counted_at) < date_trunc('minute', clock_timestamp()))
               and (c.is_moving
                    or c.next_id <> (select s.last_value + s.is_called::integer from pgqueue.job_ids as s)
                    or c.next_position <> (select s.last_value + s.is_called::integer from pgqueue.positions as s)
                    -- whatever else may have changed it, such as somebody's own delete
                    or c.counted_at + interval '10 minutes' <= clock_timestamp())
          from pgqueue.depth_count as c);
end $$;
comment on function pgqueue.depths_due() is 'Private. Whether the jobs should be counted again.';

-- sql/2_functions/upkeep/crashed_jobs.sql
-- What the deaths of these workers did to the jobs that they were running, wherever those are by now: for the hooks
-- `rescued` and `dead`. Called by a worker that was told of a rescue, if its app has such hooks.
-- Locks: none. Index: job_failures_by_crash, the primary keys, finished_jobs_by_id.
create function pgqueue.crashed_jobs(worker_ids bigint[])
returns table (id bigint, task text, queue text, args text, attempt integer, max_attempts integer, crashes integer,
               error text, message text, dead_reason text)
language plpgsql stable security definer rows 10
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    return query
    select c.job_id, c.task, c.queue, j.args::text, c.attempt::integer, j.max_attempts::integer, j.crashes::integer,
           c.error, c.message, j.dead_reason
      from pgqueue.job_failures as c
     cross join lateral (
        select d.args, d.max_attempts, d.crashes,
               case when d.worker_id = c.worker_id and d.attempt = c.attempt then d.reason end as dead_reason
          from pgqueue.dead_letters as d where d.id = c.job_id
        union all
        select r.args, r.max_attempts, r.crashes, null from pgqueue.ready_jobs as r where r.id = c.job_id
        union all
        select r.args, r.max_attempts, r.crashes, null from pgqueue.running_jobs as r where r.id = c.job_id
        union all
        select s.args, s.max_attempts, s.crashes, null from pgqueue.scheduled_jobs as s where s.id = c.job_id
        union all
        select b.args, b.max_attempts, b.crashes, null from pgqueue.blocked_jobs as b where b.id = c.job_id
        union all
        select f.args, f.max_attempts, f.crashes, null from pgqueue.finished_jobs as f where f.id = c.job_id
     ) as j
     where c.worker_id = any (worker_ids) and c.fingerprint = 'crashed'
     order by c.job_id;
end $$;
comment on function pgqueue.crashed_jobs(bigint[]) is
'The jobs that were running when these workers died, with their args, the error of that attempt, and dead_reason when it made a dead letter of them. For hooks.';

-- sql/2_functions/upkeep/drop_day.sql
-- Drops the oldest day partition that is past the longest retention of all queues: one a call.
-- Called by the leader when upkeep says that it is due.
-- Locks: ACCESS EXCLUSIVE on the partition and its parent, for the moment of the drop. Index: the catalog's.
--
-- While a lock is waited for, completions queue up behind it. So it is not asked for at all while anybody has held a lock on
-- either table for 50 ms: a reader that goes on for hours costs the completions nothing. Who comes in between is waited for
-- for 50 ms at the most. The files are removed after the locks.
create function pgqueue.drop_day(out dropped text, out blocked_by integer[])
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set timezone = 'UTC' set lock_timeout = '50ms'
as $$
declare
    -- what has not been rolled up is still to be read
    kept_from constant timestamptz := (select least(clock_timestamp() - pgqueue.longest_kept(), p.rolled_up_to)
                                         from pgqueue.rollup_progress as p);
    parent_name text;
    name text;
    holders text[];
begin
    blocked_by := '{}';
    perform set_config('synchronous_commit', 'off', true);
    if not pg_try_advisory_xact_lock(hashtextextended('pgqueue.retain', 0)) then
        return;
    end if;
    select d.parent, d.relation into parent_name, name
      from pgqueue.history_partitions() as d where d.day < kept_from::date order by d.day, d.relation limit 1;
    if name is null then
        return;
    end if;
    holders := array(select h.virtualtransaction from pgqueue.lock_holders(parent_name, name) as h);
    if cardinality(holders) > 0 then
        perform pg_sleep(0.05);
        blocked_by := array(select distinct h.pid from pgqueue.lock_holders(parent_name, name) as h
                             where h.virtualtransaction = any (holders) and h.pid is not null);
        if exists (select from pgqueue.lock_holders(parent_name, name) as h where h.virtualtransaction = any (holders)) then
            return;
        end if;
    end if;
    perform pgqueue.settle_runs(r.schedule)
       from (select distinct u.schedule from pgqueue.schedule_runs as u where u.state is null and u.job_id is not null) as r;
    begin
        execute format('lock table only pgqueue.%I in access exclusive mode', parent_name);
        execute format('drop table pgqueue.%I', name);
    exception when lock_not_available then
        blocked_by := array(select distinct h.pid from pgqueue.lock_holders(parent_name, name) as h where h.pid is not null);
        return;
    end;
    dropped := name;
end $$;
comment on function pgqueue.drop_day() is
'Drops the oldest partition that is past the longest retention, and returns its name; null: there is none, or it is in use. blocked_by: the processes that use it.';

-- The partitions of days. Called by retention. Locks: none. Index: the catalog's.
create function pgqueue.history_partitions(out parent text, out relation text, out day date)
returns setof record language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select p.relname::text, c.relname::text, to_date(right(c.relname, 8), 'YYYYMMDD')
      from pg_inherits as i join pg_class as c on c.oid = i.inhrelid join pg_class as p on p.oid = i.inhparent
     where i.inhparent = any ('{pgqueue.finished_jobs,pgqueue.job_failures,pgqueue.job_reports}'::regclass[])
       and c.relname ~ '_[0-9]{8}$';
end $$;
comment on function pgqueue.history_partitions() is 'Private. The partitions of the history that are days.';

-- Who holds a lock on one of two tables. Called by drop_day. Locks: none. Index: none.
create function pgqueue.lock_holders(one text, other text, out virtualtransaction text, out pid integer)
returns setof record language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select l.virtualtransaction, l.pid from pg_catalog.pg_locks as l
     where l.locktype = 'relation' and l.granted and l.pid is distinct from pg_backend_pid()
       and l.database = (select d.oid from pg_catalog.pg_database as d where d.datname = current_database())
       and l.relation in (to_regclass('pgqueue.' || quote_ident(one)), to_regclass('pgqueue.' || quote_ident(other)));
end $$;
comment on function pgqueue.lock_holders(text, text) is 'Private. The transactions, prepared ones included, that hold a lock on one of these tables.';

-- sql/2_functions/upkeep/keep_time.sql
-- What falls due, on time: promotes, says when the leader looks again, and what is due by then.
-- Called by upkeep for the leader, and by the leader between its rounds. `hears`: whether it can be notified.
-- Locks: those of promote. Index: scheduled_jobs_due, schedules_due.
--
-- No job is overslept. (1) The next look is published, at once and for all to see; (2) who holds a lock for writing on
-- scheduled_jobs is read; (3) what is due is read, in a later snapshot. Who inserts a job and then reads the next look
-- (wake_leader) before (1) has either committed before (3) and is seen, or holds its lock at (2): then the leader looks
-- again within 250 ms. Who reads it after (1) notifies.
create function pgqueue.keep_time(pause_seconds double precision, hears boolean)
returns table (promoted integer, schedules_due boolean, next_seconds double precision)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    most constant integer := 1000;
    began_at constant timestamptz := clock_timestamp();
    next_look timestamptz;
    next_due timestamptz;
    schedule_due timestamptz;
    mark timestamptz;
    is_written boolean;
begin
    perform set_config('synchronous_commit', 'off', true);
    promoted := pgqueue.promote(most);
    next_look := clock_timestamp() + make_interval(secs => pgqueue.checked_seconds('pause_seconds', pause_seconds));
    perform pgqueue.publish_look(case when hears then next_look end);
    is_written := cardinality(pgqueue.writers('scheduled_jobs')) > 0;
    select f.proven_run_at into mark from pgqueue.floor_proofs as f
     where f.subject = 'scheduled_jobs' and f.proven_run_at <= clock_timestamp();
    select s.run_at into next_due from pgqueue.scheduled_jobs as s
     where s.run_at >= coalesce(mark, '-infinity') order by s.run_at limit 1;
    if next_due <= began_at and promoted < most then
        -- promote has skipped it, for somebody holds it, and would skip it again at once
        is_written := true;
        select s.run_at into next_due from pgqueue.scheduled_jobs as s
         where s.run_at > began_at order by s.run_at limit 1;
    end if;
    if is_written then
        next_due := least(next_due, clock_timestamp() + interval '250 milliseconds');
    end if;
    select s.due_at into schedule_due from pgqueue.schedules as s
     where s.paused_at is null and s.due_at < 'infinity' order by s.due_at limit 1;
    schedules_due := coalesce(schedule_due <= clock_timestamp(), false);
    next_due := least(next_due, schedule_due);
    if next_due < next_look then
        next_look := next_due;
        perform pgqueue.publish_look(case when hears then next_look end);
    end if;
    next_seconds := greatest(0, extract(epoch from greatest(next_look, '2000-01-01') - clock_timestamp()));
    return next;
end $$;
comment on function pgqueue.keep_time(double precision, boolean) is
'Makes up to 1,000 due jobs ready; returns how many, whether schedules are due, and in how many seconds, at most pause_seconds, to look again.';

-- Called by keep_time and resign. Locks: none.
create function pgqueue.publish_look(next_look timestamptz)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform setval('pgqueue.next_look', greatest(1, coalesce(
        extract(epoch from greatest(publish_look.next_look, '2000-01-01')) * 1000, 1)::bigint));
end $$;
comment on function pgqueue.publish_look(timestamptz) is 'Private. Says when the leader looks at times again; null: it cannot be notified.';

-- sql/2_functions/upkeep/promote.sql
-- Makes due jobs ready, at most max_jobs. Called by upkeep.
-- Starts at the proven low-water mark of run_at, so that it never walks over the dead entries before it.
-- Locks: the promoted rows (skip locked). Index: scheduled_jobs_due.
create function pgqueue.promote(max_jobs integer)
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    -- A mark in the future says that the server's clock was set back: jobs may have been scheduled below it since.
    mark constant timestamptz := coalesce(
        (select f.proven_run_at from pgqueue.floor_proofs as f
          where f.subject = 'scheduled_jobs' and f.proven_run_at <= clock_timestamp()), '-infinity');
    -- A variable, for a volatile function cannot bound an index scan: it would walk over all that is not due yet.
    due_by constant timestamptz := clock_timestamp();
    lines text[];
begin
    if max_jobs < 0 then
        perform pgqueue.reject_range('max_jobs', max_jobs::text, 'From 0; null: as many as are due.');
    end if;
    with picked as (
        delete from pgqueue.scheduled_jobs as j
         where j.ctid = any (array(
             select s.ctid from pgqueue.scheduled_jobs as s
              where s.run_at >= mark and s.run_at <= due_by
              order by s.run_at
              limit promote.max_jobs
                for update skip locked))
        returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                  j.unique_key, j.options
    ), ready as (
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select p.id, p.run_at, p.created_at, p.lane, p.attempt, p.max_attempts, p.crashes, p.queue, p.task, p.args,
               p.unique_key, p.options
          from picked as p order by p.run_at, p.id
    )
    select array_agg(p.queue) into lines from picked as p;
    perform pgqueue.notify_sleepers(l.queue, l.jobs::integer)
       from (select q.queue, count(*) as jobs from unnest(lines) as q (queue) group by q.queue) as l;
    return coalesce(cardinality(lines), 0);
end $$;
comment on function pgqueue.promote(integer) is 'Makes up to max_jobs due jobs ready. Returns how many.';

-- sql/2_functions/upkeep/prove_floors.sql
-- Proves the floors of the lanes and the low-water mark of run_at. Called by the leader, at most every 2 s.
-- It is the rule by which CREATE INDEX CONCURRENTLY waits for lockers: (1) read the bound, (2) in a later statement
-- read who holds a lock for writing, (3) once none of those is left, in a new snapshot, read the lowest visible row;
-- the floor is the least of both and never moves back. A transaction that only reads, or writes elsewhere, does not
-- hold it back; one that has enqueued does, until it ends.
-- Hazards (each lost jobs when tried): the lowest visible row alone; lockers read before the bound; the lowest row
-- read too early; a snapshot that outlives a statement (so: READ COMMITTED only). A record made before a server start
-- is void, for a prepared transaction changes its name then.
-- Locks: row exclusive on its own tables. Index: ready_jobs_lane, scheduled_jobs_due.
create function pgqueue.prove_floors()
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    record pgqueue.floor_proofs;
    moved bigint[];
    line text;
    old bigint[];
    mark timestamptz;
    bound_position bigint;
    bound_run_at timestamptz;
    lockers text[];
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using errcode = 'PQ001', message = 'prove_floors needs READ COMMITTED',
            hint = 'Each of its statements must have a snapshot of its own.';
    end if;
    perform set_config('synchronous_commit', 'off', true);
    if not pg_try_advisory_xact_lock(hashtextextended('pgqueue.prove_floors', 0)) then
        return;
    end if;

    select * into record from pgqueue.floor_proofs as f
     where f.subject = 'ready_jobs' and f.server_started_at = pg_postmaster_start_time();
    if not found or cardinality(pgqueue.writers('ready_jobs', record.lockers)) = 0 then
        if record.subject is not null then
            for line in
                select l.queue from pgqueue.lane_floors as l
                 union select unnest(w.queues) from pgqueue.workers as w
            loop
                select f.floors into old from pgqueue.lane_floors as f where f.queue = line;
                old := coalesce(old, array_fill(0::bigint, array[20]));
                moved := array(
                    select greatest(o.floor, least(
                               coalesce((select r.position from pgqueue.ready_jobs as r
                                          where r.queue = line and r.lane = o.number - 1 and r.position >= o.floor
                                          order by r.position limit 1), record.next_position),
                               record.next_position))
                      from unnest(old) with ordinality as o (floor, number) order by o.number);
                if moved is distinct from old then
                    insert into pgqueue.lane_floors as f (queue, floors) values (line, moved)
                    on conflict (queue) do update set floors = excluded.floors;
                end if;
            end loop;
        end if;
        -- the next position to be drawn; a sequence that was never used has drawn none
        select s.last_value + s.is_called::integer into bound_position from pgqueue.positions as s;
        if bound_position is distinct from record.next_position then
            lockers := pgqueue.writers('ready_jobs');
            insert into pgqueue.floor_proofs as f (subject, next_position, lockers, server_started_at)
            values ('ready_jobs', bound_position, lockers, pg_postmaster_start_time())
            on conflict (subject) do update
                set next_position = excluded.next_position, lockers = excluded.lockers,
                    server_started_at = excluded.server_started_at;
        end if;
    end if;

    record := null;
    select * into record from pgqueue.floor_proofs as f where f.subject = 'scheduled_jobs';
    if record.server_started_at is distinct from pg_postmaster_start_time()
       or cardinality(pgqueue.writers('scheduled_jobs', record.lockers)) = 0
    then
        -- after another start the mark begins anew: the clock of a promoted standby may be behind the old one's, and so
        -- may this one's, when it was set back
        mark := '-infinity';
        if record.server_started_at = pg_postmaster_start_time() and record.next_run_at <= clock_timestamp() then
            mark := coalesce(record.proven_run_at, mark);
            mark := greatest(mark, least(record.next_run_at, coalesce(
                (select s.run_at from pgqueue.scheduled_jobs as s where s.run_at >= mark order by s.run_at limit 1),
                record.next_run_at)));
        end if;
        bound_run_at := clock_timestamp();
        lockers := pgqueue.writers('scheduled_jobs');
        insert into pgqueue.floor_proofs as f (subject, next_run_at, proven_run_at, lockers, server_started_at)
        values ('scheduled_jobs', bound_run_at, mark, lockers, pg_postmaster_start_time())
        on conflict (subject) do update
            set next_run_at = excluded.next_run_at, proven_run_at = excluded.proven_run_at, lockers = excluded.lockers,
                server_started_at = excluded.server_started_at;
    end if;
end $$;
comment on function pgqueue.prove_floors() is
'Moves the lane floors and the low-water mark of run_at up to what is proven, and begins the next proof.';

-- sql/2_functions/upkeep/rescue.sql
-- Takes a dead worker's jobs back, and its row away. Called by the worker's supervisor when a child has died (`started`:
-- what it had begun to run and may have died of; `interrupted`: what it had begun and has not died of; `cause`: how it
-- died) and by upkeep for a worker whose heartbeat stands still (null: not known, so all of its jobs may have started).
-- Locks: the worker's row for update (claims of that worker wait or fail), its rows of running_jobs.
-- Scans running_jobs by worker_id without an index: a death is rare, an index would cost every claim.
--
-- What had not started goes back untouched, and so does what was interrupted. What had started has crashed: the attempt
-- stays counted, but the first 3 crashes never use up the last attempt, for they may be another job's fault; from the
-- second start on the job runs apart, where it can kill itself alone. After 3 crashes the attempts decide: a job starts
-- at most max_attempts + 3 times, however it dies. With the option on_crash = dead it does not start a second time.
create function pgqueue.rescue(
    worker_id bigint, started bigint[] default null, interrupted bigint[] default '{}', cause text default null
) returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    finished_on constant date := pgqueue.history_day('job_failures');
    rescued integer;
    lines text[];
    held_keys jsonb;
    ids bigint[];
begin
    perform from pgqueue.workers as w where w.id = rescue.worker_id for update;
    if not found then
        return 0;
    end if;
    delete from pgqueue.workers as w where w.id = rescue.worker_id;
    delete from pgqueue.heartbeats as h where h.worker_id = rescue.worker_id;
    delete from pgqueue.sleepers as s where s.worker_id = rescue.worker_id;
    -- in the order in which endings take them, for an ending of this worker may be under way
    perform from pgqueue.running_jobs as r where r.worker_id = rescue.worker_id order by r.ctid for update;
    with ended as (
        delete from pgqueue.running_jobs as r where r.worker_id = rescue.worker_id
        returning r.id, r.worker_id, r.run_at, r.created_at, r.claimed_at, r.lane, r.attempt, r.max_attempts, r.crashes,
                  r.queue, r.task, r.args, r.unique_key, r.options, clock_timestamp() as failed_at,
                  rescue.started is null or r.id = any (rescue.started) as crashed,
                  coalesce(r.id = any (rescue.interrupted), false) as was_interrupted
    ), judged as (
        select e.*,
               e.crashed and e.crashes >= 3 and e.attempt >= e.max_attempts
               or (e.crashed or e.was_interrupted) and coalesce(e.options ->> 'on_crash' = 'dead', false) as is_dead,
               case when e.crashed and rescue.cause is null
                    then 'the worker process died or lost its lease while it ran this job'
                    when e.crashed then concat('while it ran this job the worker process ', rescue.cause)
                    else concat('the worker process ', coalesce(rescue.cause, 'died'), '; this job is not to blame')
                end as message
          from ended as e
    ), noted as (
        insert into pgqueue.job_failures (job_id, worker_id, failed_at, day, attempt, queue, task, error, message,
                                          fingerprint, dead_reason)
        select j.id, j.worker_id, j.failed_at, finished_on, j.attempt, j.queue, j.task, 'pgqueue.Crashed', j.message,
               'crashed', case when j.is_dead then 'crashed' end
          from judged as j where j.crashed or j.was_interrupted
    ), back as (
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select j.id, j.run_at, j.created_at, j.lane & ~1,
               case when not j.crashed then j.attempt - 1
                    when j.crashes < 3 then least(j.attempt, j.max_attempts - 1)
                    else j.attempt end, j.max_attempts,
               least(j.crashes + j.crashed::integer, 32767), j.queue, j.task, j.args, j.unique_key, j.options
          from judged as j where not j.is_dead order by j.id
    ), died as (
        insert into pgqueue.dead_letters (id, worker_id, run_at, created_at, claimed_at, died_at, lane, attempt,
                                          max_attempts, crashes, queue, task, args, unique_key, options, reason, error,
                                          message, errors, fingerprint)
        select j.id, j.worker_id, j.run_at, j.created_at, j.claimed_at, j.failed_at, j.lane | 1, j.attempt,
               j.max_attempts, least(j.crashes + j.crashed::integer, 32767), j.queue, j.task, j.args, j.unique_key,
               j.options, 'crashed', 'pgqueue.Crashed', j.message,
               pgqueue.earlier_failures(j.id) || jsonb_build_object(
                   'attempt', j.attempt, 'failed_at', j.failed_at, 'error', 'pgqueue.Crashed', 'message', j.message,
                   'traceback', null), 'crashed'
          from judged as j where j.is_dead
    )
    select count(*), array_agg(j.queue) filter (where not j.is_dead),
           jsonb_agg(jsonb_build_array(j.task, j.unique_key, j.id))
               filter (where j.is_dead and j.unique_key is not null), array_agg(j.id)
      into rescued, lines, held_keys, ids from judged as j;
    if held_keys is not null then
        perform pgqueue.free_keys(held_keys);
    end if;
    perform pgqueue.notify_sleepers(l.queue, l.jobs::integer)
       from (select q.queue, count(*) as jobs from unnest(lines) as q (queue) group by q.queue) as l;
    if exists (select from pgqueue.cancel_requests) then
        perform pgqueue.cancel_as_requested(array(
            select c.job_id from pgqueue.cancel_requests as c where c.worker_id = rescue.worker_id));
    end if;
    if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
        perform pgqueue.tell_waiters(ids);
    end if;
    return rescued;
end $$;
comment on function pgqueue.rescue(bigint, bigint[], bigint[], text) is
'Takes the jobs of a worker that has ended or died back, and its row away. `started`: ids of the jobs it had begun and may have died of; {}: none; null: unknown, all. `interrupted`: ids of those it had begun and has not died of. `cause`: how it died ("was killed by SIGSEGV"). Returns how many jobs.';

-- sql/2_functions/upkeep/resign.sql
-- Gives leadership up, and asks the others to take it over at once. Called by a supervisor on its way out.
-- Locks: the row of leadership.
create function pgqueue.resign(supervisor_id bigint)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    update pgqueue.leadership as l set supervisor_id = 0 where l.supervisor_id = resign.supervisor_id;
    if found then
        perform pgqueue.publish_look(null);
        perform pg_notify('pgqueue_upkeep', '');
    end if;
    return found;
end $$;
comment on function pgqueue.resign(bigint) is 'Gives leadership of upkeep up, if this supervisor has it. Returns whether it had.';

-- sql/2_functions/upkeep/resume_due.sql
-- Resumes queues whose pause had an end that has come. Called by upkeep, by the leader.
-- Locks: the queues' rows (skip locked: the next round comes soon). Scans queues, a row for each that has settings.
create function pgqueue.resume_due()
returns text[] language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    resumed text[];
begin
    with due as (
        select q.name from pgqueue.queues as q where q.resumes_at <= clock_timestamp() for update skip locked
    ), changed as (
        update pgqueue.queues as q set paused_at = null, resumes_at = null from due as d where q.name = d.name
        returning q.name
    )
    select array_agg(c.name order by c.name) into resumed from changed as c;
    perform pgqueue.notify_sleepers(r.name, 1000) from unnest(resumed) as r (name);
    return coalesce(resumed, '{}');
end $$;
comment on function pgqueue.resume_due() is 'Private. Resumes queues whose pause has come to its end. Returns which.';

-- sql/2_functions/upkeep/retain.sql
-- Makes the day partitions ahead, and forgets idempotency keys that have expired and steps of jobs that have ended, at
-- most 1,000 a call. Notes how the last jobs of schedules have ended that do not tick any more.
-- Called by the leader, once an hour. The only place with dynamic SQL: a partition's name is its day.
-- Locks: SHARE UPDATE EXCLUSIVE on the parents, by ATTACH (create ... partition of would wait behind BI readers, and
-- completions behind it). Index: unique_keys_expiry, job_steps_by_time.
create function pgqueue.retain()
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set lock_timeout = '1s' set enable_tidscan = on
as $$
declare
    parent text;
    day date;
    name text;
    made integer := 0;
begin
    perform pg_advisory_xact_lock(hashtextextended('pgqueue.retain', 0));
    foreach parent in array array['finished_jobs', 'job_failures', 'job_reports'] loop
        for ahead in 0..7 loop
            day := (now() at time zone 'UTC')::date + ahead;
            name := parent || to_char(day, '_YYYYMMDD');
            continue when to_regclass('pgqueue.' || name) is not null;
            execute format('create table pgqueue.%I (like pgqueue.%I including defaults including indexes including comments, '
                           'constraint %I check (day >= %L and day < %L))',
                           name, parent, name || '_day', day, day + 1);
            execute format('alter table pgqueue.%I attach partition pgqueue.%I for values from (%L) to (%L)',
                           parent, name, day, day + 1);
            execute format('alter table pgqueue.%I drop constraint %I', name, name || '_day');
            made := made + 1;
        end loop;
    end loop;
    delete from pgqueue.unique_keys as k
     where k.ctid = any (array(select e.ctid from pgqueue.unique_keys as e where e.expires_at < now()
                                order by e.expires_at limit 1000 for update skip locked));
    delete from pgqueue.job_steps as s
     where s.ctid = any (array(
         select e.ctid from pgqueue.job_steps as e
          where e.recorded_at < now() - interval '1 day'
            and not exists (select from pgqueue.scheduled_jobs as j where j.id = e.job_id)
            and not exists (select from pgqueue.ready_jobs as j where j.id = e.job_id)
            and not exists (select from pgqueue.running_jobs as j where j.id = e.job_id)
            and not exists (select from pgqueue.dead_letters as j where j.id = e.job_id)  -- it may be replayed
          order by e.recorded_at limit 1000));
    -- of workers that died; that of a running job goes with its attempt
    delete from pgqueue.job_progress as p
     where p.noted_at < now() - interval '1 day'
       and not exists (select from pgqueue.running_jobs as r where r.id = p.job_id and r.lease = p.lease);
    perform pgqueue.settle_runs(s.name) from pgqueue.schedules as s;
    return made;
end $$;
comment on function pgqueue.retain() is 'Makes the partitions of today and the next 7 days, forgets expired idempotency keys and the steps of ended jobs. Returns how many partitions it made.';

-- sql/2_functions/upkeep/roll_up.sql
-- Rolls up the minutes that are over into minutes, hours, days and the last hour, and groups their failures. Called by the
-- leader when a minute has ended; after a while without a leader it catches up, a fifth of a second's work in each call.
-- Locks: an advisory one, shared with count_depths, row exclusive on its own tables; it waits for nobody.
-- Index: finished_jobs_by_id (its second column), job_failures_by_time; the state tables are not read.
--
-- Every ending is counted once. A minute is rolled up when every ending in it is there to be read, by the rule of
-- producer/events.sql: (1) read the clock, (2) in a later statement, who is about to end jobs; once those have ended, (3) in a
-- new snapshot, what ended before (1). A transaction that ends jobs and stays open holds the roll-up back. How far it has
-- come is written in the same transaction. A clock that is set back hides what ends until it has come up again.
create function pgqueue.roll_up()
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set timezone = 'UTC' set plan_cache_mode = force_custom_plan
set max_parallel_workers_per_gather = 0 set enable_seqscan = off
as $$
declare
    began_at constant timestamptz := clock_timestamp();
    progress pgqueue.rollup_progress;
    closed_at timestamptz;
    step interval;
    minutes integer := 0;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using errcode = 'PQ001', message = 'roll_up needs READ COMMITTED',
            hint = 'Each of its statements must have a snapshot of its own.';
    end if;
    perform set_config('synchronous_commit', 'off', true);
    if not pg_try_advisory_xact_lock(hashtextextended('pgqueue.figures', 0)) then
        return 0;
    end if;
    select * into progress from pgqueue.rollup_progress;
    if not isfinite(progress.rolled_up_to) then
        progress.rolled_up_to := date_trunc('minute', began_at);  -- the first time: what was before is history
    end if;
    if progress.server_started_at <> pg_postmaster_start_time() then
        progress.next_to := null;  -- a prepared transaction changes its name with a start
        progress.server_started_at := pg_postmaster_start_time();
    end if;
    if cardinality(pgqueue.endings_under_way(progress.writers)) = 0 then
        progress.proven_to := greatest(progress.proven_to, progress.next_to);
        progress.next_to := null;
    end if;
    if progress.next_to is null and progress.proven_to < progress.rolled_up_to + interval '1 minute' then
        progress.next_to := clock_timestamp();
        progress.writers := pgqueue.endings_under_way();
        if cardinality(progress.writers) = 0 then
            progress.proven_to := greatest(progress.proven_to, progress.next_to);
            progress.next_to := null;
        end if;
    end if;
    closed_at := date_trunc('minute', progress.proven_to);
    while progress.rolled_up_to < closed_at and (minutes = 0 or clock_timestamp() < began_at + interval '200 milliseconds') loop
        step := interval '1 minute';
        if progress.rolled_up_to = date_trunc('hour', progress.rolled_up_to)
           and progress.rolled_up_to + interval '1 hour' <= closed_at
           and not pgqueue.has_endings(progress.rolled_up_to, progress.rolled_up_to + interval '1 hour')
        then
            step := interval '1 hour';
        else
            perform pgqueue.roll_up_minute(progress.rolled_up_to,
                                           is_behind => progress.rolled_up_to + interval '1 minute' < closed_at);
        end if;
        progress.rolled_up_to := progress.rolled_up_to + step;
        minutes := minutes + (extract(epoch from step) / 60)::integer;
    end loop;
    if minutes > 0 then
        delete from pgqueue.rollups as r where r.period = 'last_hour';
        perform pgqueue.merge_rollups('last_hour', progress.rolled_up_to - interval '1 hour', k.period,
                                      progress.rolled_up_to - interval '1 hour', progress.rolled_up_to, by_queue => k.whole)
           from (values ('minute', false), ('last_hour', true)) as k (period, whole);
        delete from pgqueue.rollups as r
         where r.ctid = any (array(
             select o.ctid
               from (values ('minute', interval '2 days'), ('hour', interval '100 days')) as k (period, age)
              cross join lateral (select e.ctid from pgqueue.rollups as e
                                   where e.period = k.period and e.bucket_at < progress.rolled_up_to - k.age
                                   order by e.bucket_at limit 1000) as o));
        if minutes > 1 or progress.rolled_up_to = date_trunc('hour', progress.rolled_up_to) then
            delete from pgqueue.failure_groups as g
             where g.ctid = any (array(select e.ctid from pgqueue.failure_groups as e
                                        where e.last_seen_at < progress.rolled_up_to - interval '100 days' limit 1000));
        end if;
    end if;
    update pgqueue.rollup_progress as p
       set rolled_up_to = progress.rolled_up_to, proven_to = progress.proven_to, next_to = progress.next_to,
           writers = progress.writers, server_started_at = progress.server_started_at
     where p is distinct from progress;
    return minutes;
end $$;
comment on function pgqueue.roll_up() is
'Rolls up the minutes that are over, and returns how many; 0: none is, an ending of one is under way, or somebody else is at it.';

-- Whether jobs or attempts have ended in a span of an hour at the most. Called by roll_up. Locks: none.
-- Index: finished_jobs_by_id, job_failures_by_time.
create function pgqueue.has_endings(from_at timestamptz, to_at timestamptz)
returns boolean language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_custom_plan
as $$
declare
    days constant date[] := pgqueue.history_days(from_at);
begin
    return exists (select from pgqueue.finished_jobs as f
                    where f.day = any (days) and f.finished_at >= has_endings.from_at and f.finished_at < has_endings.to_at)
        or exists (select from pgqueue.job_failures as f
                    where f.day = any (days) and f.failed_at >= has_endings.from_at and f.failed_at < has_endings.to_at);
end $$;
comment on function pgqueue.has_endings(timestamptz, timestamptz) is 'Private. Whether any job or attempt has ended in this span of time.';

-- The partitions that keep the endings of a UTC hour: an ending finds its partition a moment before it draws its time.
-- Called by has_endings, roll_up_minute. Locks: none. Index: none.
create function pgqueue.history_days(from_at timestamptz)
returns date[] language sql immutable
return array[(from_at at time zone 'UTC')::date - 1, (from_at at time zone 'UTC')::date, date '-infinity'];
comment on function pgqueue.history_days(timestamptz) is 'Private. The days by which the endings after a time and in its UTC hour are stored.';

-- Rolls up one minute, adds it to its hour and its day, and groups its failures. Called by roll_up. Locks: as roll_up.
-- Index: finished_jobs_by_id, job_failures_by_time, job_failures_by_job. `is_behind`: more minutes are to follow at once.
-- A worker at full speed ends millions of jobs in a minute. So they are gone through twice, once to be counted and added up, and
-- once for the histograms, where of many of a task a sample is enough, chosen by a hash of the id; each time by hashing, for to
-- sort them would take as long as all the rest.
--
-- enqueued is what must have come: the change of depth since the last minute, and what has ended. The depth is counted a moment
-- after the minute, and jobs that end in between are missing from it; so a minute can seem to have lost jobs, and gives them
-- to the next one (carried), but no further: what somebody has deleted was never carried anywhere.
create function pgqueue.roll_up_minute(minute_at timestamptz, is_behind boolean)
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set timezone = 'UTC' set plan_cache_mode = force_custom_plan
set max_parallel_workers_per_gather = 0 set enable_seqscan = off set enable_sort = off
as $$
declare
    days constant date[] := pgqueue.history_days(minute_at);
    next_at constant timestamptz := minute_at + interval '1 minute';
    failed_attempts bigint;
    cancelled_jobs bigint;
begin
    with counted as materialized (
        select f.queue, f.task, f.state, count(*) as jobs, count(f.worker_id) as claimed,
               sum(greatest(0, date_part('epoch', f.claimed_at - f.run_at))) as waited,
               sum(greatest(0, date_part('epoch', f.finished_at - f.claimed_at))) as ran
          from pgqueue.finished_jobs as f
         where f.day = any (days) and f.finished_at >= minute_at and f.finished_at < next_at
         group by f.queue, f.task, f.state
    ), ends as materialized (  -- the mask lets between 20,000 and 40,000 of many jobs through
        select c.queue, c.task, sum(c.jobs * s.is_completed)::bigint as completed,
               sum(c.jobs * (1 - s.is_completed))::bigint as cancelled, sum(c.claimed * (1 - s.is_completed))::bigint as claimed,
               coalesce(sum(c.waited) filter (where c.state = 'completed'), 0) as waited,
               coalesce(sum(c.ran) filter (where c.state = 'completed'), 0) as ran,
               (2 ^ greatest(0, floor(log(2, greatest(1, sum(c.jobs * s.is_completed)) / 20000)))::integer)::integer - 1 as mask
          from counted as c cross join lateral (select (c.state = 'completed')::integer as is_completed) as s
         group by c.queue, c.task
    ), ended as materialized (  -- a row for each pair of buckets
        select f.queue, f.task, pgqueue.bucket(date_part('epoch', f.claimed_at - f.run_at)) as wait_bucket,
               pgqueue.bucket(date_part('epoch', f.finished_at - f.claimed_at)) as run_bucket, count(*) * (e.mask + 1) as jobs
          from ends as e
          join pgqueue.finished_jobs as f on f.queue = e.queue and f.task = e.task and hashint8(f.id) & e.mask = 0
         where f.day = any (days) and f.finished_at >= minute_at and f.finished_at < next_at and f.state = 'completed'
         group by f.queue, f.task, e.mask, pgqueue.bucket(date_part('epoch', f.claimed_at - f.run_at)),
                  pgqueue.bucket(date_part('epoch', f.finished_at - f.claimed_at))
    ), targets as (
        select f.queue, f.task, count(*) as targeted,
               count(*) filter (where date_part('epoch', f.claimed_at - f.run_at) <= q.target_wait) as in_target
          from pgqueue.queues as q
          join pgqueue.finished_jobs as f on f.queue = q.name
         where f.day = any (days) and f.finished_at >= minute_at and f.finished_at < next_at and f.state = 'completed'
           and q.target_wait is not null and exists (select from pgqueue.queues as t where t.target_wait is not null)
         group by f.queue, f.task
    ), were_dead as (  -- a dead letter that was cancelled ended before; its death is counted where it belongs
        select f.queue, f.task, count(*) as jobs
          from pgqueue.finished_jobs as f
         where f.day = any (days) and f.finished_at >= minute_at and f.finished_at < next_at
           and f.state = 'cancelled' and f.worker_id is not null and exists (select from ends as e where e.claimed > 0)
           and (f.reason = 'discarded'
                or exists (select from pgqueue.job_failures as d
                            where d.job_id = f.id and d.dead_reason is not null and d.failed_at >= f.claimed_at))
         group by f.queue, f.task
    ), waits as (
        select b.queue, b.task, array_agg(b.bucket order by b.bucket) as buckets, array_agg(b.jobs order by b.bucket) as counts
          from (select e.queue, e.task, e.wait_bucket as bucket, sum(e.jobs)::bigint as jobs from ended as e
                 group by e.queue, e.task, e.wait_bucket) as b
         group by b.queue, b.task
    ), runs as (
        select b.queue, b.task, array_agg(b.bucket order by b.bucket) as buckets, array_agg(b.jobs order by b.bucket) as counts
          from (select e.queue, e.task, e.run_bucket as bucket, sum(e.jobs)::bigint as jobs from ended as e
                 group by e.queue, e.task, e.run_bucket) as b
         group by b.queue, b.task
    ), failures as (
        select f.queue, f.task, count(*) as failed, count(f.dead_reason) as dead from pgqueue.job_failures as f
         where f.day = any (days) and f.failed_at >= minute_at and f.failed_at < next_at
         group by f.queue, f.task
    ), lines as (
        select queue, task, coalesce(e.completed, 0) as completed, coalesce(e.cancelled, 0) as cancelled,
               coalesce(f.failed, 0) as failed, coalesce(f.dead, 0) as dead, coalesce(t.targeted, 0) as targeted,
               coalesce(t.in_target, 0) as in_target, coalesce(e.waited, 0) as waited, coalesce(e.ran, 0) as ran,
               coalesce(d.ready + d.scheduled + d.blocked + d.running, 0) as depth, coalesce(d.rolled_up, 0) as rolled_up,
               coalesce(d.carried, 0) as carried,
               coalesce(d.ready + d.scheduled + d.blocked + d.running - d.rolled_up, 0) + coalesce(e.completed, 0)
                   + coalesce(e.cancelled, 0) - coalesce(g.jobs, 0) + coalesce(f.dead, 0) as came
          from ends as e
          full join failures as f using (queue, task)
          full join pgqueue.depths as d using (queue, task)
          left join targets as t using (queue, task)
          left join were_dead as g using (queue, task)
    ), moved as materialized (
        select l.* from lines as l
         where l.completed + l.cancelled + l.failed + l.depth + l.rolled_up > 0 or l.carried <> 0
    ), marked as (
        update pgqueue.depths as d
           set rolled_up = m.depth,
               carried = least(0, case when roll_up_minute.is_behind then m.came + m.carried else m.came end)
          from moved as m where d.queue = m.queue and d.task = m.task
    ), written as (
        insert into pgqueue.rollups (period, bucket_at, queue, task, enqueued, completed, cancelled, failed, dead, depth,
                                     targeted, in_target, wait_seconds, run_seconds, wait_buckets, wait_counts,
                                     run_buckets, run_counts)
        select 'minute', minute_at, m.queue, m.task, greatest(0, m.came + m.carried), m.completed, m.cancelled, m.failed,
               m.dead, m.depth, m.targeted, m.in_target, m.waited, m.ran, coalesce(w.buckets, '{}'),
               coalesce(w.counts, '{}'), coalesce(r.buckets, '{}'), coalesce(r.counts, '{}')
          from moved as m
          left join waits as w on w.queue = m.queue and w.task = m.task
          left join runs as r on r.queue = m.queue and r.task = m.task
         where m.completed + m.cancelled + m.failed + m.depth + m.rolled_up > 0
    )
    select sum(m.failed), sum(m.cancelled) into failed_attempts, cancelled_jobs from moved as m;
    if failed_attempts is null then
        return;
    end if;
    perform pgqueue.merge_rollups('hour', date_trunc('hour', minute_at), 'minute', minute_at, next_at);
    perform pgqueue.merge_rollups('day', date_trunc('day', minute_at), 'minute', minute_at, next_at);
    if cancelled_jobs > 0 then  -- by whom a count may have been told before they were committed
        update pgqueue.depth_count as c set is_moving = true where not c.is_moving;
    end if;
    if failed_attempts > 0 then
        with failures as materialized (
            select coalesce(f.fingerprint, f.error) as fingerprint, f.queue, f.task, f.error, left(f.message, 1000) as message,
                   f.job_id, f.failed_at, f.dead_reason
              from pgqueue.job_failures as f
             where f.day = any (days) and f.failed_at >= minute_at and f.failed_at < next_at
        ), latest as (
            select distinct on (f.fingerprint, f.queue, f.task) f.fingerprint, f.queue, f.task, f.error, f.message, f.job_id
              from failures as f order by f.fingerprint, f.queue, f.task, f.failed_at desc, f.job_id desc
        ), counted as (
            select f.fingerprint, f.queue, f.task, min(f.failed_at) as first_seen_at, max(f.failed_at) as last_seen_at,
                   count(*) as failures, count(f.dead_reason) as dead
              from failures as f group by f.fingerprint, f.queue, f.task
        )
        insert into pgqueue.failure_groups as g (fingerprint, queue, task, error, message, job_id, first_seen_at,
                                                 last_seen_at, failures, dead)
        select c.fingerprint, c.queue, c.task, l.error, l.message, l.job_id, c.first_seen_at, c.last_seen_at, c.failures,
               c.dead
          from counted as c
          join latest as l on l.fingerprint = c.fingerprint and l.queue = c.queue and l.task = c.task
        on conflict on constraint failure_groups_one_row_a_cause_and_task do update
           set error = excluded.error, message = excluded.message, job_id = excluded.job_id,
               last_seen_at = excluded.last_seen_at, failures = g.failures + excluded.failures,
               dead = g.dead + excluded.dead;
    end if;
end $$;
comment on function pgqueue.roll_up_minute(timestamptz, boolean) is 'Private. Rolls up the minute that begins at `minute_at`; once, or it is counted twice.';

-- Adds rollups up: those of a span, and what is there already of an hour or day. Called by roll_up and roll_up_minute.
-- Locks: row exclusive on rollups. Index: rollups_one_row_a_bucket_and_task.
create function pgqueue.merge_rollups(
    period text, bucket_at timestamptz, of_period text, from_at timestamptz, to_at timestamptz, by_queue boolean default false
) returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan set enable_seqscan = off
as $$
declare
    own_period constant text := merge_rollups.period;  -- not to be taken for columns
    own_at constant timestamptz := merge_rollups.bucket_at;
begin
    with added as materialized (
        select r.queue, case when by_queue then '' else r.task end as task, r.bucket_at, r.task as of_task, r.enqueued,
               r.completed, r.cancelled, r.failed, r.dead, r.depth, r.targeted, r.in_target, r.wait_seconds, r.run_seconds,
               r.wait_buckets, r.wait_counts, r.run_buckets, r.run_counts
          from pgqueue.rollups as r
         where r.period = of_period and r.bucket_at >= from_at and r.bucket_at < to_at
    ), parts as materialized (
        select a.* from added as a
        union all
        select r.queue, r.task, '-infinity', r.task, r.enqueued, r.completed, r.cancelled, r.failed, r.dead, r.depth,
               r.targeted, r.in_target, r.wait_seconds, r.run_seconds, r.wait_buckets, r.wait_counts, r.run_buckets,
               r.run_counts
          from pgqueue.rollups as r
         where r.period = own_period and r.bucket_at = own_at and own_period <> 'last_hour'
           and exists (select from added as a where a.queue = r.queue and a.task = r.task)
    ), latest as (
        select distinct on (p.queue, p.of_task) p.queue, p.task, p.depth from parts as p
         order by p.queue, p.of_task, p.bucket_at desc
    ), depths as (
        select l.queue, l.task, sum(l.depth)::bigint as depth from latest as l group by l.queue, l.task
    ), sums as (
        select p.queue, p.task, sum(p.enqueued)::bigint as enqueued, sum(p.completed)::bigint as completed,
               sum(p.cancelled)::bigint as cancelled, sum(p.failed)::bigint as failed, sum(p.dead)::bigint as dead,
               sum(p.targeted)::bigint as targeted, sum(p.in_target)::bigint as in_target,
               sum(p.wait_seconds) as wait_seconds, sum(p.run_seconds) as run_seconds
          from parts as p group by p.queue, p.task
    ), waits as (
        select b.queue, b.task, array_agg(b.bucket order by b.bucket) as buckets, array_agg(b.jobs order by b.bucket) as counts
          from (select p.queue, p.task, h.bucket, sum(h.jobs)::bigint as jobs
                  from parts as p cross join unnest(p.wait_buckets, p.wait_counts) as h (bucket, jobs)
                 group by p.queue, p.task, h.bucket) as b
         group by b.queue, b.task
    ), runs as (
        select b.queue, b.task, array_agg(b.bucket order by b.bucket) as buckets, array_agg(b.jobs order by b.bucket) as counts
          from (select p.queue, p.task, h.bucket, sum(h.jobs)::bigint as jobs
                  from parts as p cross join unnest(p.run_buckets, p.run_counts) as h (bucket, jobs)
                 group by p.queue, p.task, h.bucket) as b
         group by b.queue, b.task
    )
    insert into pgqueue.rollups as r (period, bucket_at, queue, task, enqueued, completed, cancelled, failed, dead, depth,
                                      targeted, in_target, wait_seconds, run_seconds, wait_buckets, wait_counts,
                                      run_buckets, run_counts)
    select own_period, own_at, s.queue, s.task, s.enqueued, s.completed, s.cancelled, s.failed, s.dead, d.depth, s.targeted,
           s.in_target, s.wait_seconds, s.run_seconds, coalesce(w.buckets, '{}'), coalesce(w.counts, '{}'),
           coalesce(n.buckets, '{}'), coalesce(n.counts, '{}')
      from sums as s
      join depths as d on d.queue = s.queue and d.task = s.task
      left join waits as w on w.queue = s.queue and w.task = s.task
      left join runs as n on n.queue = s.queue and n.task = s.task
    on conflict on constraint rollups_one_row_a_bucket_and_task do update
       set enqueued = excluded.enqueued, completed = excluded.completed, cancelled = excluded.cancelled,
           failed = excluded.failed, dead = excluded.dead, depth = excluded.depth, targeted = excluded.targeted,
           in_target = excluded.in_target, wait_seconds = excluded.wait_seconds, run_seconds = excluded.run_seconds,
           wait_buckets = excluded.wait_buckets, wait_counts = excluded.wait_counts, run_buckets = excluded.run_buckets,
           run_counts = excluded.run_counts;
end $$;
comment on function pgqueue.merge_rollups(text, timestamptz, text, timestamptz, timestamptz, boolean) is
'Private. Adds the rollups of a span to those of an hour or day, or makes those of the last hour of them, by task or by queue.';

-- sql/2_functions/upkeep/summarize_history.sql
-- Has the BRIN of the history cover what was written lately. Called by the leader when a round has found it grown by some MB.
-- Locks: SHARE UPDATE EXCLUSIVE on today's partition, if it is free; it waits for nobody. Index: finished_jobs_by_id.
--
-- A job that has ended is looked for by id or time in the ranges that may hold it, and in all that are not summarized yet. The
-- requests of autosummarize are carried out once a minute, and no more than 256 of them are remembered: at full speed that
-- would leave millions of rows to be read for each job that somebody looks at.
create function pgqueue.summarize_history()
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set lock_timeout = '10ms'
as $$
begin
    perform brin_summarize_new_values(i.indexrelid)
       from pg_catalog.pg_index as i
       join pg_catalog.pg_class as c on c.oid = i.indexrelid
       join pg_catalog.pg_am as a on a.oid = c.relam
      where i.indrelid in (to_regclass('pgqueue.finished_jobs' || to_char((clock_timestamp() at time zone 'UTC')::date, '_YYYYMMDD')),
                           'pgqueue.finished_jobs_overflow'::regclass)
        and a.amname = 'brin';
exception when lock_not_available then
    null;  -- autovacuum is at it, or somebody changes the partition: a round comes soon
end $$;
comment on function pgqueue.summarize_history() is 'Lets the latest of the history be found without reading all of it.';

-- sql/2_functions/upkeep/tick.sql
-- The schedules that are due, with all that their next due time is computed from. Called by the leader. Locks: none.
-- Index: schedules_due.
create function pgqueue.due_schedules()
returns table (name text, created_at timestamptz, changed_at timestamptz, due_at timestamptz, now timestamptz, cron text,
               seconds text, every double precision, at timestamptz, tz text, starts_at timestamptz, ends_at timestamptz,
               grace double precision, missed text, missed_limit integer)
language plpgsql security definer rows 10
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_indexscan = on
as $$
#variable_conflict use_column
declare
    read_at constant timestamptz := clock_timestamp();  -- a variable, for a volatile function cannot bound an index scan
begin
    return query
    select s.name, s.created_at, s.changed_at, nullif(s.due_at, '-infinity'), read_at, s.cron, s.seconds, s.every, s.at,
           s.tz, s.starts_at, s.ends_at, s.grace, s.missed, s.missed_limit
      from pgqueue.schedules as s
     where s.paused_at is null and s.due_at <= read_at
     order by s.due_at limit 100;
end $$;
comment on function pgqueue.due_schedules() is
'Up to 100 schedules that are due or to be planned (due_at null), and the clock by which they are.';

-- Enqueues the jobs of a schedule's due times, notes each, and sets its next due time: all in one transaction, or nothing.
-- Called by the leader, for each schedule by itself. Returns how many jobs were made; null: somebody else has been here,
-- or the schedule was changed or paused meanwhile: nothing was done. `due_at`: what was read (null: to be planned).
-- dues, outcomes, missed: the due times to note, each enqueued, caught_up or missed. next_due_at null: never again.
-- Locks: the schedule's row (skip locked), those of enqueue. Index: the primary keys.
create function pgqueue.tick(
    name text, changed_at timestamptz, due_at timestamptz, dues timestamptz[], outcomes text[], missed integer[],
    next_due_at timestamptz, problem text default null
) returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_indexscan = on set enable_indexonlyscan = on
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    held pgqueue.schedules;
    run record;
    made integer := 0;
begin
    select * into held from pgqueue.schedules as s
     where s.name = tick.name and s.changed_at = tick.changed_at and s.due_at = coalesce(tick.due_at, '-infinity')
       and s.paused_at is null
       for update skip locked;
    if not found then
        return null;
    end if;
    if exists (select from unnest(dues, missed) as d (due_at, missed) where num_nulls(d.due_at, d.missed) > 0)
       or not coalesce(outcomes <@ '{enqueued,caught_up,missed}'::text[], true)
       or cardinality(dues) is distinct from cardinality(outcomes) or cardinality(dues) is distinct from cardinality(missed) then
        raise exception using errcode = 'PQ001', message = format('schedule %s: dues, outcomes, missed: not one of each for a due time', left(tick.name, 100)),
            hint = 'outcomes: enqueued, caught_up or missed.';
    end if;
    perform pgqueue.settle_runs(held.name);
    for run in select * from unnest(dues, outcomes, missed) as d (due_at, outcome, missed) order by d.due_at loop
        if (select r.outcome from pgqueue.run_due(held, run.due_at, run.outcome, run.missed, true) as r)
           in ('enqueued', 'caught_up') then
            made := made + 1;
        end if;
    end loop;
    update pgqueue.schedules as s set due_at = coalesce(next_due_at, 'infinity'), problem = tick.problem
     where s.name = held.name;
    delete from pgqueue.schedule_runs as r
     where r.schedule = held.name and r.due_at < clock_timestamp() - interval '7 days'
       and r.due_at < (select k.due_at from pgqueue.schedule_runs as k where k.schedule = held.name
                        order by k.due_at desc offset 99 limit 1)
       and r.due_at <= (select k.due_at from pgqueue.schedule_runs as k where k.schedule = held.name
                         order by k.due_at offset 99 limit 1);
    return made;
end $$;
comment on function pgqueue.tick(text, timestamptz, timestamptz, timestamptz[], text[], integer[], timestamptz, text) is
'Enqueues what a schedule has due and sets its next due time, by compare and set. Returns how many jobs; null: it was not as read, and nothing was done.';

-- sql/2_functions/upkeep/trim_history.sql
-- Deletes up to 1,000 jobs that a queue keeps no longer, or looks for such jobs for 100 ms or 1,000 blocks, whichever is more,
-- from the oldest days on. Called by the leader, again and again until there is no more to do.
-- Locks: an advisory one, the rows that go (skip locked). Index: none on finished_jobs; dead_letters_by_time.
--
-- A partition is gone through in passes, block by block, by tid, and trims says how far; at the end of a pass the rows that it has
-- left say when the next one is due, a twentieth of its retention late: so a row is read some twenty times in its life, and
-- not before twenty times what the last pass took. Where every queue keeps as much no pass is made: days are dropped whole.
-- Nothing goes before roll_up has read it, or in its first minute, in which waiters look for it.
create function pgqueue.trim_history(out jobs integer, out more boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set timezone = 'UTC' set plan_cache_mode = force_custom_plan
set max_parallel_workers_per_gather = 0 set enable_seqscan = off set enable_mergejoin = off set enable_tidscan = on
as $$
declare
    began_at constant timestamptz := clock_timestamp();
    kept constant text := pgqueue.kept_settings();
    today constant date := began_at::date;
    target pgqueue.trims;
    is_over boolean;
    step_at timestamptz;
begin
    jobs := 0;
    more := false;
    perform set_config('synchronous_commit', 'off', true);
    if not pg_try_advisory_xact_lock(hashtextextended('pgqueue.trim', 0)) then
        return;
    end if;
    if exists (select from pgqueue.retention as r where r.settings <> kept) then
        update pgqueue.trims as t set due_at = '-infinity', next_block = 0, rules = null, seconds = 0;
        update pgqueue.retention as r set settings = kept;
    end if;
    delete from pgqueue.trims as t where to_regclass('pgqueue.' || quote_ident(t.relation)) is null;
    insert into pgqueue.trims (relation, day)
    select d.relation, d.day from pgqueue.history_partitions() as d where d.parent = 'finished_jobs' and d.day <= today
    union all
    select o.relation, null from unnest('{finished_jobs_overflow,dead_letters,audit}'::text[]) as o (relation)
    on conflict on constraint trims_one_row_a_table do nothing;
    more := true;
    while jobs = 0 and clock_timestamp() < began_at + interval '100 milliseconds' loop  -- tables in which there is little to look at
        step_at := clock_timestamp();
        select * into target from pgqueue.trims as t where t.due_at <= clock_timestamp() order by t.day nulls first, t.relation limit 1;
        if not found then
            update pgqueue.retention as r
               set due_at = greatest(
                       began_at + interval '1 minute',
                       least((select min(t.due_at) from pgqueue.trims as t), (today + 1)::timestamptz,
                             (select min(d.day) + 1 + pgqueue.longest_kept() from pgqueue.history_partitions() as d)));
            more := false;
            return;
        end if;
        if target.relation = 'dead_letters' then
            select d.jobs, d.is_over, d.next_due_at into jobs, is_over, target.next_due_at from pgqueue.trim_dead() as d;
        elsif target.relation = 'audit' then
            delete from pgqueue.audit as a
             where a.ctid = any (array(select o.ctid
                                         from (select e.ctid, e.acted_at from pgqueue.audit as e order by e.id limit 1000) as o
                                        where o.acted_at < began_at - interval '400 days'));
            get diagnostics jobs = row_count;
            is_over := jobs < 1000;
            target.next_due_at := began_at + interval '1 day';
        else
            if target.rules is null then
                target.rules := pgqueue.keep_rules(target.day is null);
                -- what is yet to come to it
                select case when target.day < (began_at - interval '1 hour')::date then 'infinity' when bool_or(r.counted) then began_at
                            else began_at + coalesce(1.05 * min(r.keep), '100 years') end
                  into target.next_due_at
                  from jsonb_to_recordset(target.rules) as r (keep interval, counted boolean);
            end if;
            if jsonb_array_length(target.rules) > 0 then
                select s.jobs, s.next_block, s.is_over, least(target.next_due_at, s.next_due_at)
                  into jobs, target.next_block, is_over, target.next_due_at
                  from pgqueue.trim_blocks(target.relation, target.next_block, target.rules) as s;
            else
                is_over := true;
                target.next_due_at := 'infinity';
            end if;
        end if;
        target.seconds := target.seconds + greatest(0, extract(epoch from clock_timestamp() - step_at));
        if is_over then
            update pgqueue.trims as t
               set due_at = greatest(target.next_due_at, clock_timestamp() + interval '1 minute',
                                     clock_timestamp() + make_interval(secs => 20 * target.seconds)),
                   next_block = 0, rules = null, seconds = 0
             where t.relation = target.relation;
        else
            update pgqueue.trims as t
               set next_block = target.next_block, rules = target.rules, next_due_at = target.next_due_at,
                   seconds = target.seconds
             where t.relation = target.relation;
        end if;
    end loop;
end $$;
comment on function pgqueue.trim_history() is
'A step of retention: deletes at most 1,000 jobs that their queue keeps no longer, with what is on record of them. Returns how many jobs, and whether there is more to do.';

-- One step over a partition of finished_jobs, from a block on. Called by trim_history. Locks: as trim_history. Index: none, it goes by tid.
create function pgqueue.trim_blocks(
    relation text, from_block bigint, rules jsonb, out jobs integer, out next_block bigint, out is_over boolean, out next_due_at timestamptz
) language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
set max_parallel_workers_per_gather = 0 set enable_seqscan = off set enable_mergejoin = off set enable_tidscan = on
as $$
declare
    most constant integer := 1000;
    blocks constant integer := 1000;
    size constant bigint := pg_relation_size(to_regclass('pgqueue.' || quote_ident(relation)))
                            / current_setting('block_size')::integer;
    ids bigint[];
    states text[];
    born_at timestamptz;
    last_block bigint;
begin
    next_block := least(from_block + blocks, size);
    is_over := next_block = size;
    execute format($step$
        with rules as materialized (
            select * from jsonb_to_recordset($1) as r (queue text, state text, before timestamptz)
        ), expired as materialized (
            select f.ctid from pgqueue.%1$I as f
              left join rules as r on r.queue = f.queue and r.state = f.state
              left join rules as d on d.queue is null and d.state = f.state
             where f.ctid >= $2 and f.ctid < $3 and f.finished_at < case when r.queue is null then d.before else r.before end
             limit $4 for update of f skip locked
        ), gone as (
            delete from pgqueue.%1$I as f where f.ctid = any (array(select e.ctid from expired as e))
            returning f.ctid, f.id, f.state, f.created_at
        )
        select count(*), coalesce(array_agg(g.id), '{}'), array_agg(g.state), min(g.created_at),
               max((g.ctid::text::point)[0]::bigint)
          from gone as g $step$, relation)
       into jobs, ids, states, born_at, last_block
      using rules, format('(%s,0)', from_block)::tid, format('(%s,0)', next_block)::tid, most;
    if jobs = most then
        next_block := last_block;
        is_over := false;
    end if;
    if jobs > 0 then
        perform pgqueue.forget_jobs(ids, states, born_at);
    end if;
    execute format($step$
        with rules as materialized (
            select * from jsonb_to_recordset($1) as r (queue text, state text, keep interval, counted boolean)
        )
        select min(case when k.counted then clock_timestamp() + 0.05 * (clock_timestamp() - f.finished_at)
                        else f.finished_at + 1.05 * k.keep end)
          from pgqueue.%1$I as f
          left join rules as r on r.queue = f.queue and r.state = f.state
          left join rules as d on d.queue is null and d.state = f.state
         cross join lateral (select case when r.queue is null then d.counted else r.counted end as counted,
                                    case when r.queue is null then d.keep else r.keep end as keep) as k
         where f.ctid >= $2 and f.ctid < $3 $step$, relation)
       into next_due_at
      using rules, format('(%s,0)', from_block)::tid, format('(%s,0)', next_block)::tid;
    if is_over and relation = 'finished_jobs_overflow' then
        delete from pgqueue.job_failures_overflow as f
         where f.ctid = any (array(select o.ctid from pgqueue.job_failures_overflow as o
                                    where o.failed_at < clock_timestamp() - pgqueue.longest_kept() limit most));
        delete from pgqueue.job_reports_overflow as f
         where f.ctid = any (array(select o.ctid from pgqueue.job_reports_overflow as o
                                    where o.reported_at < clock_timestamp() - pgqueue.longest_kept() limit most));
    end if;
end $$;
comment on function pgqueue.trim_blocks(text, bigint, jsonb) is
'Private. One step of trim_history over a partition. next_due_at: when the first of the rows will go that it has left.';

-- Deletes dead letters that their queue keeps no longer, the oldest first. Called by trim_history. Locks: as trim_history.
-- Index: dead_letters_by_time.
create function pgqueue.trim_dead(out jobs integer, out is_over boolean, out next_due_at timestamptz)
language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan set enable_seqscan = off
as $$
declare
    most constant integer := 1000;
    horizon constant timestamptz := pgqueue.trim_horizon();
    rule record;
    ids bigint[];
    born_at timestamptz;
begin
    jobs := 0;
    next_due_at := 'infinity';
    for rule in
        select q.name, q.max_dead, least(q.keep_dead, '1000 years') as keep from pgqueue.queues as q
         where q.keep_dead is not null or q.max_dead is not null
    loop
        next_due_at := least(next_due_at, clock_timestamp() + case when rule.max_dead is null then 0.05 * rule.keep else '0' end);
        continue when jobs >= most;
        with expired as materialized (
            select d.ctid from pgqueue.dead_letters as d
             where d.queue = rule.name
               and d.died_at < least(horizon, greatest(
                       clock_timestamp() - rule.keep,
                       case when rule.max_dead = 0 then 'infinity' else
                           (select n.died_at from pgqueue.dead_letters as n where n.queue = rule.name
                             order by n.died_at desc offset rule.max_dead - 1
                             limit case when rule.max_dead is null then 0 else 1 end) end))
             order by d.died_at limit most - jobs for update skip locked
        ), gone as (
            delete from pgqueue.dead_letters as d where d.ctid = any (array(select e.ctid from expired as e))
            returning d.id, d.created_at
        )
        select coalesce(array_agg(g.id), '{}'), min(g.created_at) into ids, born_at from gone as g;
        if cardinality(ids) > 0 then
            jobs := jobs + cardinality(ids);
            perform pgqueue.forget_jobs(ids, array_fill('dead'::text, array[cardinality(ids)]), born_at);
            update pgqueue.depth_count as c set is_moving = true where not c.is_moving;  -- to be counted again
        end if;
    end loop;
    is_over := jobs < most;
end $$;
comment on function pgqueue.trim_dead() is 'Private. Deletes at most 1,000 dead letters that their queue keeps no longer.';

-- Forgets what else is on record of jobs that have gone, and notes how those of schedules had ended. Called by trim_history.
-- Locks: the rows that go. Index: job_failures_by_job, job_reports_by_job, job_steps_taken_once, schedule_runs_unsettled.
create function pgqueue.forget_jobs(ids bigint[], states text[], born_at timestamptz)
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan set enable_seqscan = off
as $$
declare
    -- an attempt of theirs has not ended before, but for a clock that was set back; or in the overflow
    born_on constant date := (born_at at time zone 'UTC')::date - 1;
begin
    update pgqueue.schedule_runs as r set state = g.state
      from unnest(ids, states) as g (id, state)
     where r.job_id = g.id and r.state is null and r.job_id is not null;
    delete from pgqueue.job_failures as f where f.job_id = any (ids) and (f.day >= born_on or f.day = '-infinity');
    delete from pgqueue.job_reports as f where f.job_id = any (ids) and (f.day >= born_on or f.day = '-infinity');
    delete from pgqueue.job_steps as s where s.job_id = any (ids);
end $$;
comment on function pgqueue.forget_jobs(bigint[], text[], timestamptz) is 'Private. Forgets failures, reports and steps of jobs that have gone.';

-- sql/2_functions/upkeep/upkeep.sql
-- One call a round: heartbeat, safety look, and for the leader rescue and promotion.
-- Called by every supervisor every few seconds. Leadership is a transaction lock inside this call and a row that says
-- when the last round was: nobody who is stopped, cut off or killed keeps it, and it works through any pooler.
-- Correctness never rests on it: rescue locks the worker's row, promote skips locked rows.
-- Locks: one advisory transaction lock, and those of rescue and promote. A duty that fails is reported in `problems`
-- and stops no other.
create function pgqueue.upkeep(
    supervisor_id bigint, worker_ids bigint[], queues text[], round_seconds double precision, overdue_seconds double precision,
    hears boolean
) returns table (missing bigint[], look boolean, led boolean, rescued integer, promoted integer, schedules_due boolean,
                 floors_due boolean, retain_due boolean, next_seconds double precision, problems text[],
                 rescued_workers bigint[], depths_due boolean, rollup_due boolean, queue_settings jsonb, stopping bigint[], history_pages bigint,
                 resumed_at timestamptz)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    round_at constant timestamptz := clock_timestamp();
    last pgqueue.leadership;
    is_overdue boolean;
    worker record;
    taken integer;
    kept_at timestamptz;
    patience constant text := current_setting('lock_timeout');
begin
    if upkeep.supervisor_id is null then
        perform pgqueue.reject_range('supervisor_id', null, 'The number by which the supervisor registers its workers.');
    end if;
    perform pgqueue.checked_seconds('round_seconds', round_seconds), pgqueue.checked_seconds('overdue_seconds', overdue_seconds);
    perform set_config('synchronous_commit', 'off', true);
    -- One that another supervisor has registered is ours no more: a database that came back in an earlier state gives ids again.
    missing := pgqueue.heartbeat(upkeep.worker_ids) || array(
        select w.id from pgqueue.workers as w
         where w.id = any (upkeep.worker_ids) and w.supervisor_id <> upkeep.supervisor_id);
    problems := '{}';
    rescued := 0;
    rescued_workers := '{}';
    promoted := 0;
    schedules_due := false;
    floors_due := false;
    retain_due := false;
    depths_due := false;
    rollup_due := false;
    history_pages := 0;
    led := false;
    loop  -- twice at the most: the second look is under the lock, for somebody may have led since the first
        select * into last from pgqueue.leadership;
        -- a round in the future was led before the server's clock was set back
        is_overdue := last.led_at not between round_at - make_interval(secs => overdue_seconds)
                                          and round_at + make_interval(secs => overdue_seconds);
        if not (is_overdue or last.supervisor_id in (0, upkeep.supervisor_id)) then  -- 0: nobody yet, or it has resigned
            led := false;
            exit;
        end if;
        exit when led;
        led := pg_try_advisory_xact_lock(hashtextextended('pgqueue.upkeep', 0));
        exit when not led;
    end loop;
    if led then
        -- After a gap in which no round was led (the database or the whole fleet was away) nobody could beat:
        -- leases count from now. So they do when the server recovered: from a crash, or as the standby that was promoted, on which
        -- no session holds its lock, and which may have been running for months.
        if last.led_at < round_at - make_interval(secs => 2.5 * overdue_seconds)
           or not exists (select from pgqueue.recovery_seen)
        then
            last.resumed_at := round_at;
            delete from pgqueue.recovery_seen;
            insert into pgqueue.recovery_seen (seen_at) values (round_at);
        end if;
        update pgqueue.leadership as l
           set supervisor_id = upkeep.supervisor_id, led_at = round_at, resumed_at = last.resumed_at
         where l.supervisor_id <> upkeep.supervisor_id or l.resumed_at <> last.resumed_at or is_overdue
            or l.led_at < round_at - make_interval(secs => overdue_seconds / 4);  -- seldom: see heartbeat
        for worker in
            select w.id, w.supervisor_id, w.session_lock, h.beat_at,
                   greatest(h.beat_at, last.resumed_at, pg_postmaster_start_time()) < round_at - w.lease as is_late
              from pgqueue.workers as w join pgqueue.heartbeats as h on h.worker_id = w.id
             where greatest(h.beat_at, last.resumed_at, pg_postmaster_start_time())
                   < round_at - least(w.lease, make_interval(secs => 1.25 * overdue_seconds))
        loop
            begin
                -- It may have beaten since this loop began, which waits for locks: judged is the beat that we hold.
                perform from pgqueue.heartbeats as h
                  where h.worker_id = worker.id and h.beat_at = worker.beat_at for update skip locked;
                continue when not found;
                -- A lock that is free says that the supervisor's session is gone; one that is held says nothing,
                -- and our own could be taken a second time.
                if worker.is_late
                   or worker.session_lock and worker.supervisor_id <> upkeep.supervisor_id
                      and pg_try_advisory_xact_lock(worker.supervisor_id)
                then
                    -- A transaction of that worker may hold the lock of a job that it was completing, for as long as its
                    -- process stands still: nothing else waits for that, and the next round tries again.
                    perform set_config('lock_timeout', '200ms', true);
                    taken := pgqueue.rescue(worker.id);
                    perform set_config('lock_timeout', patience, true);
                    if taken > 0 then  -- by us, and not by its own supervisor in the same moment
                        rescued := rescued + taken;
                        rescued_workers := rescued_workers || worker.id;
                    end if;
                end if;
            exception when others then
                problems := problems || format('rescue of worker %s: %s', worker.id, sqlerrm);
            end;
        end loop;
        begin
            select t.promoted, t.schedules_due, t.next_seconds into promoted, schedules_due, next_seconds
              from pgqueue.keep_time(round_seconds, hears) as t;
        exception when others then
            next_seconds := round_seconds;
            problems := problems || format('promote: %s', sqlerrm);
        end;
        kept_at := clock_timestamp();
        begin
            if exists (select from pgqueue.blocked_jobs) then
                perform pgqueue.unblock_stranded();
            end if;
        exception when others then
            problems := problems || format('unblock: %s', sqlerrm);
        end;
        begin
            if exists (select from pgqueue.queues as q where q.resumes_at <= clock_timestamp()) then
                perform pgqueue.resume_due();
            end if;
        exception when others then
            problems := problems || format('resume: %s', sqlerrm);
        end;
        delete from pgqueue.sleepers as s
         using (select distinct q.queue from pgqueue.workers as w cross join unnest(w.queues) as q (queue)) as line
         where s.queue = line.queue and s.period > now() - interval '10 minutes' and s.period < now() - interval '35 seconds';
        delete from pgqueue.stop_requests as s
         where not exists (select from pgqueue.workers as w where w.id = s.worker_id);
        delete from pgqueue.waiters as w
         where w.period > now() - interval '10 minutes' and w.period < now() - interval '1 minute';
        -- of jobs that completed first
        delete from pgqueue.cancel_requests as c
         where c.requested_at < clock_timestamp() - interval '1 minute'
           -- a look-up each, never a join with all that runs
           and (select r.id from pgqueue.running_jobs as r where r.id = c.job_id and r.lease = c.lease limit 1) is null;
        -- A floor is due when positions were drawn since its proof began, or it has not come up to that proof.
        floors_due := not exists (
            select from pgqueue.floor_proofs as f, pgqueue.positions as p
             where f.subject = 'ready_jobs' and f.next_position = p.last_value + p.is_called::integer
               and f.server_started_at = pg_postmaster_start_time()
               and not exists (select from pgqueue.lane_floors as l where f.next_position > any (l.floors))
               and not exists (select from unnest(upkeep.queues) as q (queue)
                                where not exists (select from pgqueue.lane_floors as l where l.queue = q.queue)));
        retain_due := to_regclass('pgqueue.finished_jobs' || to_char((now() at time zone 'UTC')::date + 7, '_YYYYMMDD')) is null
            or exists (select from pgqueue.unique_keys as k where k.expires_at < now())
            or exists (select from pgqueue.job_steps as s where s.recorded_at < now() - interval '1 day')
            or pgqueue.retention_due();
        depths_due := pgqueue.depths_due();
        history_pages := coalesce(pg_relation_size(to_regclass('pgqueue.finished_jobs' || to_char(round_at at time zone 'UTC', '_YYYYMMDD'))), 0)
            / current_setting('block_size')::bigint;
        rollup_due := exists (select from pgqueue.rollup_progress as p
                               where p.rolled_up_to + interval '1 minute' <= clock_timestamp());
    end if;
    resumed_at := last.resumed_at;
    queue_settings := pgqueue.queue_settings(upkeep.queues);
    stopping := array(select s.worker_id from pgqueue.stop_requests as s where s.worker_id = any (upkeep.worker_ids));
    -- The safety look: a ready job older than 1 s in a queue of ours, whatever happened to the hint.
    begin
        look := exists (
            select from unnest(upkeep.queues) as q (queue)
             where not exists (select from pgqueue.queues as p where p.name = q.queue and p.paused_at is not null)
               and exists (
                   select from unnest(coalesce((select f.floors from pgqueue.lane_floors as f where f.queue = q.queue),
                                               array_fill(0::bigint, array[20]))) with ordinality as c (floor, number)
                    cross join lateral (
                        select r.run_at from pgqueue.ready_jobs as r
                         where r.queue = q.queue and r.lane = c.number - 1 and r.position >= c.floor
                         order by r.position limit 1) as first
                    where first.run_at < round_at - interval '1 second'));
    exception when others then
        look := true;
        problems := problems || format('look: %s', sqlerrm);
    end;
    if led then
        next_seconds := greatest(0, next_seconds - extract(epoch from clock_timestamp() - kept_at));
    elsif is_overdue then  -- and somebody is at it
        next_seconds := 0.1 * overdue_seconds;
    else
        -- When a round is overdue, and not before: whatever befalls the leader, the next round is led in time.
        next_seconds := greatest(0, extract(epoch from least(last.led_at, clock_timestamp()) - clock_timestamp())
                                    + overdue_seconds * (1.12 + 0.05 * random()));
    end if;
    return next;
end $$;
comment on function pgqueue.upkeep(bigint, bigint[], text[], double precision, double precision, boolean) is
'A round of upkeep. Beats for the workers; returns those registered no more (missing), whether a ready job has waited for over 1 s in one of the queues (look), whether this call led, and what it did; when to come back; problems; the workers whose jobs it took back; what operators have set for the queues (queue_settings), which of the workers they want to stop, and how many blocks of history today has (history_pages), and since when rounds are led without a gap or a recovery of the server (resumed_at).';

-- sql/2_functions/worker/claim.sql
-- Takes up to max_jobs ready jobs for a worker, queue after queue in the order given, each by lane, then position.
-- Called by workers. cursors: 20 per queue (one a lane), the position to start at; 0: the lane's floor.
-- fence: 64 random bits, drawn by the worker for this claim alone; they become the lease of its jobs. The worker draws
-- them so that it can give back a claim whose answer it never heard (forget_claim).
-- Locks: key share on the worker's row (rescue waits for it), the claimed rows (skip locked). Index: ready_jobs_lane.
--
-- Counts the attempt, so that a job that kills its worker runs out of attempts too. Never returns more than asked.
-- Commits asynchronously: a claim that a crash of the server forgets only means that the job is still ready.
create function pgqueue.claim(
    worker_id bigint, queues text[], limits integer[], max_jobs integer, cursors bigint[], fence bigint
) returns table (id bigint, lease bigint, queue text, lane smallint, "position" bigint, task text, args text,
               attempt smallint, max_attempts smallint, crashes smallint, options text, waited double precision)
language plpgsql security definer rows 100
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    room integer := max_jobs;
    wanted integer;
    taken integer;
    floors bigint[];
begin
    if claim.queues is null or claim.max_jobs is null or claim.fence is null
       or cardinality(claim.limits) is distinct from cardinality(claim.queues) then
        raise exception using errcode = 'PQ001', message = format('claim: max_jobs %s, fence %s, queues and limits of lengths %s and %s',
                coalesce(max_jobs::text, 'null'), case when fence is null then 'null' else 'given' end,
                coalesce(cardinality(queues)::text, 'null'), coalesce(cardinality(limits)::text, 'null')),
            hint = 'None of them may be null, and each queue has a limit.';
    end if;
    perform set_config('synchronous_commit', 'off', true);
    perform from pgqueue.workers as w where w.id = claim.worker_id for key share;
    if not found then
        raise exception using errcode = 'PQ002', message = format('worker %s is not registered', coalesce(claim.worker_id::text, 'null')),
            hint = 'It was declared dead after its heartbeat stood still; its jobs were given to others. Register again.';
    end if;
    for i in 1 .. cardinality(claim.queues) loop
        wanted := least(room, claim.limits[i]);
        continue when wanted <= 0;
        continue when exists (select from pgqueue.queues as q where q.name = claim.queues[i] and q.paused_at is not null);
        select f.floors into floors from pgqueue.lane_floors as f where f.queue = claim.queues[i];
        return query
        with picked as (
            delete from pgqueue.ready_jobs as j
             where j.ctid = any (array(
                 select line.ctid
                   from unnest(claim.cursors[20 * i - 19 : 20 * i], coalesce(floors, array_fill(0, array[20])))
                        with ordinality as c (cursor, floor, number)
                        cross join lateral (
                            select r.ctid from pgqueue.ready_jobs as r
                             where r.queue = claim.queues[i] and r.lane = c.number - 1
                               and r.position >= greatest(c.cursor, c.floor)
                             order by r.position
                             limit wanted
                               for update skip locked) as line
                  limit wanted))
            returning j.id, j.run_at, j.created_at, j.lane, j.position, j.attempt, j.max_attempts, j.crashes, j.queue,
                      j.task, j.args, j.unique_key, j.options
        ), running as (
            insert into pgqueue.running_jobs (id, worker_id, lease, run_at, created_at, claimed_at, lane, attempt,
                                              max_attempts, crashes, queue, task, args, unique_key, options)
            select p.id, claim.worker_id, claim.fence, p.run_at, p.created_at, clock_timestamp(), p.lane, p.attempt + 1,
                   p.max_attempts, p.crashes, p.queue, p.task, p.args, p.unique_key, p.options
              from picked as p
        )
        select p.id, claim.fence, p.queue, p.lane, p.position, p.task, p.args::text, (p.attempt + 1)::smallint,
               p.max_attempts, p.crashes, p.options::text, greatest(0, date_part('epoch', clock_timestamp() - p.run_at))
          from picked as p order by p.lane, p.position;
        get diagnostics taken = row_count;
        room := room - taken;
        if taken = wanted and taken > 0 then
            -- There may be more: one more worker looks, the next by id. Not the latest to fall asleep, as elsewhere:
            -- that is this one, which stays a sleeper until it has been busy for a while, or the one that woke it.
            perform pg_notify('pgqueue_' || s.worker_id, '')
               from (select n.worker_id from pgqueue.sleepers as n
                      where n.queue = claim.queues[i] and n.worker_id <> claim.worker_id
                        and n.period > now() - interval '35 seconds'
                        and n.slept_at > clock_timestamp() - interval '25 seconds'
                      order by n.worker_id < claim.worker_id, n.worker_id
                      limit 1) as s
              where current_setting('pgqueue.notify', true) is distinct from 'off';
        end if;
    end loop;
end $$;
comment on function pgqueue.claim(bigint, text[], integer[], integer, bigint[], bigint) is
'Claims up to max_jobs ready jobs (at most limits[i] of queues[i]) for a worker, under the lease `fence`. `waited`: seconds since each was due. PQ002 when the worker is not registered.';

-- Gives back what a claim took whose answer never reached the worker: untouched, the attempt too.
-- Called by workers after a claim ended in a lost connection. Waits for that claim if it is still under way.
-- Locks: the worker's row for update, the claim's rows of running_jobs. Scans running_jobs: an outage is rare.
create function pgqueue.forget_claim(worker_id bigint, fence bigint)
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
declare
    ids bigint[];
begin
    perform from pgqueue.workers as w where w.id = forget_claim.worker_id for update;
    select array_agg(r.id) into ids from pgqueue.running_jobs as r
     where r.worker_id = forget_claim.worker_id and r.lease = forget_claim.fence;
    return pgqueue.release(ids, array_fill(forget_claim.fence, array[coalesce(cardinality(ids), 0)]));
end $$;
comment on function pgqueue.forget_claim(bigint, bigint) is
'Gives back the jobs of a claim whose answer was lost. Returns their ids.';

-- Gives back what the worker is said to hold and does not, untouched: the database came back in an earlier state, after a
-- failover or a restore, and has forgotten how these jobs ended. Called by workers once they hear of that, and never beside a
-- claim of theirs. Locks: the worker's row for update, those jobs' rows. Scans running_jobs: a recovery is rare.
create function pgqueue.forget_unheld(worker_id bigint, ids bigint[], leases bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
declare
    unheld bigint[];
    unheld_leases bigint[];
begin
    if cardinality(ids) <> cardinality(leases) then
        perform pgqueue.reject_lengths('ids, leases', array[cardinality(ids), cardinality(leases)]);
    end if;
    perform from pgqueue.workers as w where w.id = forget_unheld.worker_id for update;
    select array_agg(r.id), array_agg(r.lease) into unheld, unheld_leases from pgqueue.running_jobs as r
     where r.worker_id = forget_unheld.worker_id
       and (r.id, r.lease) not in (select h.id, h.lease from unnest(forget_unheld.ids, forget_unheld.leases) as h (id, lease));
    return pgqueue.release(coalesce(unheld, '{}'), coalesce(unheld_leases, '{}'));
end $$;
comment on function pgqueue.forget_unheld(bigint, bigint[], bigint[]) is
'Gives back the jobs that a worker is said to hold, but for these. Returns their ids.';

-- sql/2_functions/worker/complete.sql
-- Ends attempts as completed. Called by workers, also as the last statement of a transactional task.
-- Returns the ids that were accepted; the others' leases were lost and nothing was changed for them.
-- Locks: the jobs' rows of running_jobs, in the order in which they lie, as rescue does. Index: running_jobs_one_claim_a_job.
--
-- Hazard: `delete ... using unnest(...)` lets the planner begin with running_jobs when that was analyzed while empty, and
-- compare each of its rows with each pair: 300 ms instead of 7. A lateral look-up with a limit cannot be turned round.
create function pgqueue.complete(ids bigint[], leases bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    today constant date := pgqueue.history_day('finished_jobs');
    held_keys jsonb;
    accepted bigint[];
begin
    if cardinality(ids) <> cardinality(leases) then
        perform pgqueue.reject_lengths('ids, leases', array[cardinality(ids), cardinality(leases)]);
    end if;
    with ended as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from unnest(complete.ids, complete.leases) as e (id, lease)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id and h.lease = e.lease limit 1) as held))
        returning r.id, r.worker_id, r.run_at, r.created_at, r.claimed_at, r.lane, r.attempt, r.max_attempts, r.crashes,
                  r.queue, r.task, r.args, r.unique_key, r.options
    ), history as (
        insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane, attempt,
                                           max_attempts, crashes, queue, task, state, args, unique_key, options)
        select e.id, e.worker_id, e.run_at, e.created_at, e.claimed_at, clock_timestamp(), today, e.lane, e.attempt,
               e.max_attempts, e.crashes, e.queue, e.task, 'completed', e.args, e.unique_key, e.options
          from ended as e
    )
    select coalesce(array_agg(e.id), '{}'), jsonb_agg(jsonb_build_array(e.task, e.unique_key, e.id))
               filter (where e.unique_key is not null)
      into accepted, held_keys from ended as e;
    if held_keys is not null then
        perform pgqueue.free_keys(held_keys);
    end if;
    if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
        perform pgqueue.tell_waiters(accepted);
    end if;
    return accepted;
end $$;
comment on function pgqueue.complete(bigint[], bigint[]) is
'Ends the attempts (ids[i] under leases[i]) as completed. Returns the ids accepted; a lost lease changes nothing.';

-- sql/2_functions/worker/complete_with_results.sql
-- Ends attempts as completed, each with what its handler returned. Called by workers for tasks that keep results, also as
-- the last statement of a transactional task. Returns the ids that were accepted; a lost lease changes nothing.
-- Locks: the jobs' rows of running_jobs, in the order in which they lie, as rescue does. Index: running_jobs_one_claim_a_job.
--
-- Not a default of complete: that one is what a drain is made of, and carries no JSON.
create function pgqueue.complete_with_results(completions jsonb)
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    today constant date := pgqueue.history_day('finished_jobs');
    accepted bigint[];
    held_keys jsonb;
    -- a look-up by id and lease, not a join: see complete
    completion_of jsonb;
begin
    if not pgqueue.are_claims(completions) then
        perform pgqueue.reject_claims('completions', completions);
    end if;
    completion_of := coalesce(
        (select jsonb_object_agg(concat((c.completion ->> 'id')::numeric::bigint, ' ', (c.completion ->> 'lease')::numeric::bigint), c.completion)
           from jsonb_array_elements(completions) as c (completion)), '{}');
    with gone as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from jsonb_to_recordset(complete_with_results.completions) as e (id numeric, lease numeric)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id::bigint and h.lease = e.lease::bigint limit 1) as held))
        returning r.id, r.worker_id, r.run_at, r.created_at, r.claimed_at, r.lane, r.attempt, r.max_attempts, r.crashes,
                  r.queue, r.task, r.args, r.unique_key, r.options, completion_of -> concat(r.id, ' ', r.lease) as completion
    ), history as (
        insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane, attempt,
                                           max_attempts, crashes, queue, task, state, args, unique_key, options, reason,
                                           result)
        select g.id, g.worker_id, g.run_at, g.created_at, g.claimed_at, clock_timestamp(), today, g.lane, g.attempt,
               g.max_attempts, g.crashes, g.queue, g.task, 'completed', g.args, g.unique_key, g.options,
               g.completion ->> 'reason', g.completion -> 'result'
          from gone as g
    )
    select coalesce(array_agg(g.id), '{}'), jsonb_agg(jsonb_build_array(g.task, g.unique_key, g.id))
               filter (where g.unique_key is not null)
      into accepted, held_keys from gone as g;
    if held_keys is not null then
        perform pgqueue.free_keys(held_keys);
    end if;
    if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
        perform pgqueue.tell_waiters(accepted);
    end if;
    return accepted;
end $$;
comment on function pgqueue.complete_with_results(jsonb) is
'Ends attempts as completed and keeps their results. completions: an array of {id, lease, result, reason}; result: any JSON, missing: none is kept; reason: why it is missing. Returns the ids accepted.';

-- sql/2_functions/worker/end_cancelled.sql
-- Ends attempts as cancelled: somebody asked for it (the reason is theirs), the handler did, or the job had expired.
-- Called by workers. Returns the ids that were accepted; a lost lease changes nothing.
-- Locks: the jobs' rows of running_jobs, in the order in which they lie, as rescue does. Index: running_jobs_one_claim_a_job.
create function pgqueue.end_cancelled(ids bigint[], leases bigint[], reasons text[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    finished_on constant date := pgqueue.history_day('finished_jobs');
    accepted bigint[];
    held_keys jsonb;
    -- a look-up by id and lease, not a join: see complete
    reason_of constant jsonb := coalesce(
        (select jsonb_object_agg(concat(e.id, ' ', e.lease), e.reason order by e.n)
           from unnest(ids, leases, reasons) with ordinality as e (id, lease, reason, n)), '{}');
begin
    if cardinality(ids) <> cardinality(leases) or cardinality(ids) <> cardinality(reasons) then
        perform pgqueue.reject_lengths('ids, leases, reasons', array[cardinality(ids), cardinality(leases), cardinality(reasons)]);
    end if;
    with ended as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from unnest(end_cancelled.ids, end_cancelled.leases) as e (id, lease)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id and h.lease = e.lease limit 1) as held))
        returning r.id, r.worker_id, r.lease, r.run_at, r.created_at, r.claimed_at, r.lane, r.attempt, r.max_attempts,
                  r.crashes, r.queue, r.task, r.args, r.unique_key, r.options
    ), answered as (
        delete from pgqueue.cancel_requests as c where c.job_id in (select e.id from ended as e)
        returning c.job_id, c.reason
    ), history as (
        insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane, attempt,
                                           max_attempts, crashes, queue, task, state, args, unique_key, options, reason)
        select e.id, e.worker_id, e.run_at, e.created_at, e.claimed_at, clock_timestamp(), finished_on, e.lane, e.attempt,
               e.max_attempts, e.crashes, e.queue, e.task, 'cancelled', e.args, e.unique_key, e.options,
               coalesce(reason_of ->> concat(e.id, ' ', e.lease), a.reason, 'cancelled')
          from ended as e left join answered as a on a.job_id = e.id
    )
    select coalesce(array_agg(e.id), '{}'), jsonb_agg(jsonb_build_array(e.task, e.unique_key, e.id))
               filter (where e.unique_key is not null)
      into accepted, held_keys from ended as e;
    if held_keys is not null then
        perform pgqueue.free_keys(held_keys, with_periods => true);
    end if;
    if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
        perform pgqueue.tell_waiters(accepted);
    end if;
    return accepted;
end $$;
comment on function pgqueue.end_cancelled(bigint[], bigint[], text[]) is
'Ends attempts as cancelled; reasons[i] null: the reason of the request. Returns the ids accepted.';

-- Ends those attempts as cancelled that were not to start any more: options.expires_at, or expires_in seconds after the
-- enqueue, has passed. Called by workers before they start such a job; the clock is the database's.
-- Returns the ids that were ended. Locks: as end_cancelled.
create function pgqueue.end_expired(ids bigint[], leases bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    late record;
begin
    if cardinality(end_expired.ids) <> cardinality(end_expired.leases) then
        perform pgqueue.reject_lengths('ids, leases', array[cardinality(end_expired.ids), cardinality(end_expired.leases)]);
    end if;
    select coalesce(array_agg(r.id), '{}') as ids, coalesce(array_agg(r.lease), '{}') as leases into late
      from unnest(end_expired.ids, end_expired.leases) as e (id, lease)
           join pgqueue.running_jobs as r on r.id = e.id and r.lease = e.lease
     where least((r.options ->> 'expires_at')::timestamptz,
                 r.created_at + make_interval(secs => (r.options ->> 'expires_in')::double precision)) < clock_timestamp();
    return pgqueue.end_cancelled(late.ids, late.leases, array_fill('expired'::text, array[cardinality(late.ids)]));
end $$;
comment on function pgqueue.end_expired(bigint[], bigint[]) is
'Ends attempts whose job has expired as cancelled, reason expired. Returns the ids that were.';

-- The running jobs of a worker that somebody has asked to cancel. Called by the worker when it is told. Locks: none.
-- Index: running_jobs_one_claim_a_job. Reads cancel_requests whole: it is nearly always empty.
create function pgqueue.cancel_requests(worker_ids bigint[])
returns table (worker_id bigint, job_id bigint, lease bigint) language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
begin
    return query
    select c.worker_id, c.job_id, c.lease from pgqueue.cancel_requests as c
     where c.worker_id = any (cancel_requests.worker_ids);
end $$;
comment on function pgqueue.cancel_requests(bigint[]) is 'What the workers have been asked to cancel, and have not ended yet.';

-- sql/2_functions/worker/fail.sql
-- Ends attempts as failed: back to scheduled after the delay, or to dead_letters when the delay is null or no attempt
-- is left. Called by workers. Returns the ids that were accepted; a lost lease changes nothing.
-- Locks: the jobs' rows of running_jobs, in the order in which they lie, as rescue does. Index: running_jobs_one_claim_a_job, job_failures_by_job.
create function pgqueue.fail(failures jsonb)
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    finished_on constant date := pgqueue.history_day('job_failures');
    accepted bigint[];
    held_keys jsonb;
    first_due timestamptz;
    -- a look-up by id and lease, not a join: see complete
    failure_of jsonb;
begin
    if not pgqueue.are_claims(failures) then
        perform pgqueue.reject_claims('failures', failures);
    end if;
    failure_of := coalesce(
        (select jsonb_object_agg(concat((f.failure ->> 'id')::numeric::bigint, ' ', (f.failure ->> 'lease')::numeric::bigint), f.failure)
           from jsonb_array_elements(failures) as f (failure)), '{}');
    with gone as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from jsonb_to_recordset(fail.failures) as e (id numeric, lease numeric)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id::bigint and h.lease = e.lease::bigint limit 1) as held))
        returning r.id, r.worker_id, r.run_at, r.created_at, r.claimed_at, r.lane, r.attempt, r.max_attempts, r.crashes,
                  r.queue, r.task, r.args, r.unique_key, r.options, clock_timestamp() as failed_at,
                  failure_of -> concat(r.id, ' ', r.lease) as failure
    ), ended as (
        select g.*, coalesce(g.failure ->> 'error', 'unknown') as error, coalesce(g.failure ->> 'message', '') as message,
               g.failure ->> 'traceback' as traceback, g.failure ->> 'fingerprint' as fingerprint,
               (g.failure ->> 'delay')::double precision as delay, coalesce(g.failure ->> 'reason', 'exhausted') as reason,
               g.failure ->> 'delay' is null or g.attempt >= g.max_attempts as is_dead
          from gone as g
    ), noted as (
        insert into pgqueue.job_failures (job_id, worker_id, failed_at, day, attempt, queue, task, error, message,
                                          traceback, fingerprint, dead_reason)
        select e.id, e.worker_id, e.failed_at, finished_on, e.attempt, e.queue, e.task, e.error, e.message, e.traceback,
               e.fingerprint, case when e.is_dead then e.reason end
          from ended as e
    ), retried as (
        insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                            args, unique_key, options)
        -- never for the past (promotion relies on it), and no delay can stop an ending
        select e.id, clock_timestamp() + make_interval(secs => greatest(0, least(e.delay, 315360000))),
               e.created_at, e.lane | 1, e.attempt, e.max_attempts, e.crashes, e.queue, e.task, e.args, e.unique_key, e.options
          from ended as e where not e.is_dead
        returning run_at
    ), died as (
        insert into pgqueue.dead_letters (id, worker_id, run_at, created_at, claimed_at, died_at, lane, attempt,
                                          max_attempts, crashes, queue, task, args, unique_key, options, reason, error,
                                          message, errors, fingerprint)
        select e.id, e.worker_id, e.run_at, e.created_at, e.claimed_at, e.failed_at, e.lane | 1, e.attempt,
               e.max_attempts, e.crashes, e.queue, e.task, e.args, e.unique_key, e.options, e.reason, e.error, e.message,
               pgqueue.earlier_failures(e.id) || jsonb_build_object(
                   'attempt', e.attempt, 'failed_at', e.failed_at, 'error', e.error, 'message', e.message,
                   'traceback', e.traceback), e.fingerprint
          from ended as e where e.is_dead
    )
    select coalesce(array_agg(e.id), '{}'), jsonb_agg(jsonb_build_array(e.task, e.unique_key, e.id))
               filter (where e.is_dead and e.unique_key is not null), (select min(r.run_at) from retried as r)
      into accepted, held_keys, first_due from ended as e;
    if first_due is not null then
        perform pgqueue.wake_leader(first_due);
    end if;
    if held_keys is not null then
        perform pgqueue.free_keys(held_keys);
    end if;
    if exists (select from pgqueue.cancel_requests) then
        perform pgqueue.cancel_as_requested(accepted);
    end if;
    if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
        perform pgqueue.tell_waiters(accepted);
    end if;
    return accepted;
end $$;
comment on function pgqueue.fail(jsonb) is
'Ends attempts as failed. failures: an array of {id, lease, error, message, traceback, fingerprint, delay, reason}; delay in seconds, null: dead letter with that reason. Returns the ids accepted.';

-- sql/2_functions/worker/heartbeat.sql
-- Says that workers are alive. Called by their supervisor, every 2 s while they hold jobs.
-- Returns the ids that are registered no more: their jobs belong to others now.
-- Locks: the workers' rows of heartbeats and sleepers. Index: heartbeats_one_row_a_worker, sleepers_one_row_a_worker_and_period.
create function pgqueue.heartbeat(worker_ids bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
begin
    perform set_config('synchronous_commit', 'off', true);
    -- Not again within a thirtieth of the lease: under a held snapshot each beat leaves a version behind, and rounds of
    -- upkeep, which beat as well, may come many times a second.
    update pgqueue.heartbeats as h set beat_at = clock_timestamp()
      from pgqueue.workers as w
     where h.worker_id = any (heartbeat.worker_ids) and w.id = h.worker_id
       and h.beat_at < clock_timestamp() - w.lease / 30;
    -- Who sleeps on sleeps in a new period. All of its rows are locked, so that nobody who is being taken off comes back.
    insert into pgqueue.sleepers (queue, period, worker_id, slept_at)
    select asleep.queue, date_bin('10 seconds', clock_timestamp(), '2000-01-01'), asleep.worker_id, clock_timestamp()
      from (select s.queue, s.worker_id, s.slept_at
              from pgqueue.workers as w cross join unnest(w.queues) as q (queue)
                   join pgqueue.sleepers as s on s.queue = q.queue and s.worker_id = w.id
             where w.id = any (heartbeat.worker_ids) and s.period > now() - interval '30 seconds'
               for update of s) as asleep
     group by asleep.queue, asleep.worker_id
    having max(asleep.slept_at) > '-infinity' and max(asleep.slept_at) < clock_timestamp() - interval '10 seconds'
    on conflict (queue, period, worker_id) do update set slept_at = excluded.slept_at;
    return array(select b.id from unnest(heartbeat.worker_ids) as b (id)
                  where not exists (select from pgqueue.workers as w where w.id = b.id));
end $$;
comment on function pgqueue.heartbeat(bigint[]) is
'Beats for the given workers. Returns those that are no longer registered.';

-- sql/2_functions/worker/lack_task.sql
-- Notes that a worker's app does not have a task, so that operators see which worker lacks what.
-- Called by workers, once a task. Locks: the worker's row (not its key: claims go on).
create function pgqueue.lack_task(worker_id bigint, task text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgqueue.workers as w set unknown_tasks = w.unknown_tasks || lack_task.task
     where w.id = lack_task.worker_id and lack_task.task <> all (w.unknown_tasks);
end $$;
comment on function pgqueue.lack_task(bigint, text) is 'Adds a task to the worker''s unknown_tasks.';

-- sql/2_functions/worker/note.sql
-- Adds a line to what an attempt leaves to be looked at, from outside of its handler: that it stopped its worker's loop.
-- Called by workers. Not fenced: it says what was and changes no job, and the attempt may have ended meanwhile.
-- Locks: none. Index: none is read. Commits asynchronously, as note_reports does.
create function pgqueue.note(job_id bigint, worker_id bigint, attempt integer, level text, line text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if note.job_id is null or note.worker_id is null or note.attempt is null or note.attempt not between 0 and 32767 then
        raise exception using errcode = 'PQ001', message = format('note: job_id %s, worker_id %s, attempt %s',
                coalesce(job_id::text, 'null'), coalesce(worker_id::text, 'null'), coalesce(attempt::text, 'null')),
            hint = 'Two ids, and an attempt from 0 to 32767.';
    end if;
    perform set_config('synchronous_commit', 'off', true);
    insert into pgqueue.job_reports (job_id, worker_id, reported_at, day, attempt, lines)
    values (note.job_id, note.worker_id, clock_timestamp(), pgqueue.history_day('job_reports'), note.attempt,
            jsonb_build_array(jsonb_build_object('at', clock_timestamp(), 'level', note.level, 'text', note.line)));
end $$;
comment on function pgqueue.note(bigint, bigint, integer, text, text) is
'Adds a line to the reports of an attempt. level: as in logs, warning for one.';

-- sql/2_functions/worker/note_progress.sql
-- Says how far running jobs have come. Called by workers for their handlers, at most 4 times a second and job.
-- A lost lease notes nothing. Locks: the jobs' rows of job_progress. Index: running_jobs_one_claim_a_job,
-- job_progress_one_row_a_job. Commits asynchronously: the next note says more.
create function pgqueue.note_progress(notes jsonb)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    if not pgqueue.are_claims(notes) then
        perform pgqueue.reject_claims('notes', notes);
    end if;
    perform set_config('synchronous_commit', 'off', true);
    insert into pgqueue.job_progress as p (job_id, lease, noted_at, progress)
    select held.id, held.lease, clock_timestamp(), n.progress
      from (select distinct on (r.id) r.id, r.lease, r.progress
              from jsonb_to_recordset(note_progress.notes) as r (id numeric, lease numeric, progress jsonb)
             where r.progress is not null order by r.id) as n
     cross join lateral (select h.id, h.lease from pgqueue.running_jobs as h
                          where h.id = n.id::bigint and h.lease = n.lease::bigint limit 1) as held
    on conflict (job_id) do update
       set lease = excluded.lease, noted_at = excluded.noted_at, progress = excluded.progress;
end $$;
comment on function pgqueue.note_progress(jsonb) is
'Notes how far running jobs have come. notes: an array of {id, lease, progress}, a job once; progress: {done, total, message, metadata}.';

-- Keeps what attempts have left to be looked at. Called by workers before they end them, for those that left something.
-- A lost lease keeps nothing. Locks: the jobs' rows of job_progress. Index: as above.
create function pgqueue.note_reports(reports jsonb)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    today constant date := pgqueue.history_day('job_reports');
begin
    if not pgqueue.are_claims(reports) then
        perform pgqueue.reject_claims('reports', reports);
    end if;
    perform set_config('synchronous_commit', 'off', true);
    with report as (
        select held.id, held.lease, held.worker_id, held.attempt, r.progress, r.lines
          from jsonb_to_recordset(note_reports.reports) as r (id numeric, lease numeric, progress jsonb, lines jsonb)
         cross join lateral (select h.id, h.lease, h.worker_id, h.attempt from pgqueue.running_jobs as h
                              where h.id = r.id::bigint and h.lease = r.lease::bigint limit 1) as held
    ), kept as (
        insert into pgqueue.job_reports (job_id, worker_id, reported_at, day, attempt, progress, lines)
        select r.id, r.worker_id, clock_timestamp(), today, r.attempt, r.progress, r.lines from report as r order by r.id
    )
    delete from pgqueue.job_progress as p
     where p.job_id = any (array(select r.id from report as r order by r.id));
end $$;
comment on function pgqueue.note_reports(jsonb) is
'Keeps the last progress and log lines of attempts that are about to end. reports: an array of {id, lease, progress, lines}; lines: an array of {at, level, text}.';

-- sql/2_functions/worker/queue_settings.sql
-- What operators have set for queues that concerns their workers. Called by supervisors before they start a worker, and
-- by upkeep: so every worker has it within a round, behind a pooler too. Locks: none. Index: queues_one_row_a_name.
create function pgqueue.queue_settings(queues text[])
returns jsonb language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
    return (select coalesce(jsonb_object_agg(q.name, jsonb_strip_nulls(jsonb_build_object('limit', q.worker_limit, 'timeout', q.timeout))), '{}')
              from pgqueue.queues as q
             where q.name = any (queue_settings.queues) and num_nonnulls(q.worker_limit, q.timeout) > 0);
end $$;
comment on function pgqueue.queue_settings(text[]) is
'What operators have set for queues that concerns their workers: {queue: {limit, timeout}}, a key only for what is set.';

-- sql/2_functions/worker/register.sql
-- Makes the row of a worker process, before it claims. Called by the supervisor.
-- Locks: RowExclusive on workers, heartbeats.
create function pgqueue.register(
    supervisor_id bigint, host text, pid integer, version text, queues text[], concurrency integer,
    lease double precision, session_lock boolean
) returns bigint language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    worker_id bigint;
begin
    if num_nulls(supervisor_id, host, pid, version, register.queues, session_lock) > 0
       or exists (select from unnest(register.queues) as q (queue) where q.queue is null) then
        raise exception using errcode = 'PQ001', message = format('register: supervisor_id %s, host %s, pid %s, version %s, queues %s, session_lock %s',
                coalesce(supervisor_id::text, 'null'), pgqueue.as_given(host), coalesce(pid::text, 'null'), pgqueue.as_given(version),
                pgqueue.as_given(queues::text), coalesce(session_lock::text, 'null')),
            hint = 'None of them may be null, nor one of the queues.';
    end if;
    if not coalesce(register.concurrency >= 1, false) then
        perform pgqueue.reject_range('concurrency', concurrency::text, 'From 1.');
    end if;
    insert into pgqueue.workers (supervisor_id, host, pid, version, queues, concurrency, lease, session_lock, started_at)
    values (register.supervisor_id, register.host, register.pid, register.version, register.queues,
            register.concurrency, make_interval(secs => pgqueue.checked_seconds('lease', register.lease)), register.session_lock, now())
    returning id into worker_id;
    insert into pgqueue.heartbeats (worker_id, beat_at) values (worker_id, clock_timestamp());
    return worker_id;
end $$;
comment on function pgqueue.register(bigint, text, integer, text, text[], integer, double precision, boolean) is
'Registers a worker process and returns its id. `lease` is in seconds.';

-- Holds the supervisor's session advisory lock: gone with the session, it lets rescue come early.
-- Called by the supervisor, once a connection, where session locks are sound. Locks: one advisory lock.
create function pgqueue.hold_session(supervisor_id bigint)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return pg_try_advisory_lock(hold_session.supervisor_id);
end $$;
comment on function pgqueue.hold_session(bigint) is
'Takes the session advisory lock of a supervisor; false when another session still holds it.';

-- sql/2_functions/worker/release.sql
-- Gives running jobs back untouched: to the front of their priority, the attempt given back.
-- Called by workers for what they cannot start or finish before they stop. Returns the ids that were accepted.
-- Locks: the jobs' rows of running_jobs, in the order in which they lie, as rescue does. Index: running_jobs_one_claim_a_job.
create function pgqueue.release(ids bigint[], leases bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    accepted bigint[];
    lines text[];
begin
    if cardinality(ids) <> cardinality(leases) then
        perform pgqueue.reject_lengths('ids, leases', array[cardinality(ids), cardinality(leases)]);
    end if;
    with ended as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from unnest(release.ids, release.leases) as e (id, lease)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id and h.lease = e.lease limit 1) as held))
        returning r.id, r.run_at, r.created_at, r.lane, r.attempt, r.max_attempts, r.crashes, r.queue, r.task, r.args,
                  r.unique_key, r.options
    ), back as (
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select e.id, e.run_at, e.created_at, e.lane & ~1, e.attempt - 1, e.max_attempts, e.crashes, e.queue, e.task,
               e.args, e.unique_key, e.options
          from ended as e order by e.id
    )
    select coalesce(array_agg(e.id), '{}'), array_agg(e.queue) into accepted, lines from ended as e;
    perform pgqueue.notify_sleepers(l.queue, l.jobs::integer)
       from (select q.queue, count(*) as jobs from unnest(lines) as q (queue) group by q.queue) as l;
    if exists (select from pgqueue.cancel_requests) then
        perform pgqueue.cancel_as_requested(accepted);
    end if;
    return accepted;
end $$;
comment on function pgqueue.release(bigint[], bigint[]) is
'Gives running jobs back without using up the attempt; they are served first in their priority. Returns the ids accepted.';

-- sql/2_functions/worker/sleep.sql
-- Falling asleep without losing a wake-up. The worker (1) registers as a sleeper and commits, (2) reads in a new
-- statement who holds a lock for writing on ready_jobs: only such an enqueuer may have read `sleepers` before (1) and
-- have yet to commit, (3) looks for jobs, with pauses that grow to 250 ms, until those have ended, and once more after
-- the test that found them gone. Then, and only then, it relies on the NOTIFY.
-- Comparing pg_snapshot_xmin with an xmax instead loses wake-ups: a running producer's xid can equal it.

-- (1) Called by workers, at most 5 times a second. Locks: the worker's rows of sleepers.
create function pgqueue.fall_asleep(worker_id bigint, queues text[])
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
begin
    perform set_config('synchronous_commit', 'off', true);
    insert into pgqueue.sleepers (queue, period, worker_id, slept_at)
    select q.queue, date_bin('10 seconds', clock_timestamp(), '2000-01-01'), fall_asleep.worker_id, clock_timestamp()
      from unnest(fall_asleep.queues) as q (queue)
     where q.queue is not null and exists (select from pgqueue.workers as w where w.id = fall_asleep.worker_id)
    on conflict (queue, period, worker_id) do update set slept_at = excluded.slept_at;
    update pgqueue.sleepers as s set slept_at = '-infinity'
      from pgqueue.workers as w cross join unnest(w.queues) as q (queue)
     where w.id = fall_asleep.worker_id and q.queue <> all (fall_asleep.queues)
       and s.queue = q.queue and s.worker_id = w.id
       and s.period > now() - interval '1 minute' and s.slept_at > '-infinity';
end $$;
comment on function pgqueue.fall_asleep(bigint, text[]) is
'Registers a worker as asleep for these queues and no others: enqueues into these queues notify it on channel pgqueue_<worker_id>.';

-- (2) and (3). Called by workers and upkeep. `among`: only these; null: all. Locks: none.
create function pgqueue.writers(relation text, among text[] default null)
returns text[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
declare
    written constant regclass := to_regclass('pgqueue.' || quote_ident(writers.relation));
begin
    if written is null then
        raise exception using errcode = 'PQ001', message = format('relation: %s is no table of pgqueue', pgqueue.as_given(relation)),
            hint = 'ready_jobs, scheduled_jobs, finished_jobs, dead_letters, job_failures, and so on';
    end if;
    return array(
        select l.virtualtransaction from pg_catalog.pg_locks as l
         where l.locktype = 'relation' and l.mode = 'RowExclusiveLock' and l.granted
           and l.database = (select d.oid from pg_catalog.pg_database as d where d.datname = current_database())
           and l.relation = written
           and l.pid is distinct from pg_backend_pid()
           -- A prepared transaction that the server has recovered is called -1/xid, whatever it was called before; after
           -- a crash of one backend that happens without a new start time. So it counts among any.
           and (writers.among is null or l.virtualtransaction = any (writers.among) or l.virtualtransaction like '-1/%'));
end $$;
comment on function pgqueue.writers(text, text[]) is
'The virtual transactions, prepared ones included, that hold a lock for writing on a table of pgqueue.';

-- Called by workers that have been busy for 200 ms, and at their end. Locks: the worker's rows of sleepers.
-- The rows stay, awake: under a held snapshot a row that is deleted and inserted again leaves an index entry each time,
-- and every insert of that key walks over all of them.
create function pgqueue.wake_up(worker_id bigint)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    update pgqueue.sleepers as s set slept_at = '-infinity'
      from pgqueue.workers as w cross join unnest(w.queues) as q (queue)
     where w.id = wake_up.worker_id and s.queue = q.queue and s.worker_id = w.id
       and s.period > now() - interval '1 minute' and s.slept_at > '-infinity';
end $$;
comment on function pgqueue.wake_up(bigint) is 'Takes a worker off the sleepers: nobody notifies it any more.';

-- sql/2_functions/worker/snooze.sql
-- Puts running jobs off, the attempt given back. Called by workers: a handler's Snooze, a task that the app lacks.
-- Returns the ids that were accepted; a lost lease changes nothing.
-- Locks: the jobs' rows of running_jobs, in the order in which they lie, as rescue does. Index: running_jobs_one_claim_a_job.
create function pgqueue.snooze(ids bigint[], leases bigint[], delays double precision[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    accepted bigint[];
    first_due timestamptz;
    -- a look-up by id and lease, not a join: see complete
    delay_of constant jsonb := coalesce(
        (select jsonb_object_agg(concat(e.id, ' ', e.lease), e.delay order by e.n)
           from unnest(ids, leases, delays) with ordinality as e (id, lease, delay, n)), '{}');
begin
    if cardinality(ids) <> cardinality(leases) or cardinality(ids) <> cardinality(delays) then
        perform pgqueue.reject_lengths('ids, leases, delays', array[cardinality(ids), cardinality(leases), cardinality(delays)]);
    end if;
    with ended as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from unnest(snooze.ids, snooze.leases) as e (id, lease)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id and h.lease = e.lease limit 1) as held))
        returning r.id, r.created_at, r.lane, r.attempt, r.max_attempts, r.crashes, r.queue, r.task, r.args,
                  r.unique_key, r.options, (delay_of ->> concat(r.id, ' ', r.lease))::double precision as delay
    ), put_off as (
        insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                            args, unique_key, options)
        -- never for the past (promotion relies on it), and no delay can stop an ending
        select e.id, clock_timestamp() + make_interval(secs => greatest(0, least(coalesce(e.delay, 0), 315360000))),
               e.created_at, e.lane | 1, e.attempt - 1, e.max_attempts, e.crashes, e.queue, e.task, e.args, e.unique_key, e.options
          from ended as e
        returning run_at
    )
    select coalesce(array_agg(e.id), '{}'), (select min(p.run_at) from put_off as p) into accepted, first_due from ended as e;
    if first_due is not null then
        perform pgqueue.wake_leader(first_due);
    end if;
    if exists (select from pgqueue.cancel_requests) then
        perform pgqueue.cancel_as_requested(accepted);
    end if;
    return accepted;
end $$;
comment on function pgqueue.snooze(bigint[], bigint[], double precision[]) is
'Puts running jobs off by delays[i] seconds without using up the attempt. Returns the ids accepted.';

-- sql/2_functions/worker/steps.sql
-- What a step of a job returned when an earlier attempt took it; null: it has not been taken. Called by workers.
-- Locks: none. Index: job_steps_taken_once.
create function pgqueue.step_result(job_id bigint, name text)
returns jsonb language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
begin
    return (select s.result from pgqueue.job_steps as s
             where s.job_id = step_result.job_id and s.name = step_result.name);
end $$;
comment on function pgqueue.step_result(bigint, text) is
'What a step of a job returned; null when it has not been taken.';

-- Records that a step was taken, as the last statement of the transaction in which it was. Called by workers.
-- PQ004 when the lease was lost: then the transaction, and what the step wrote in it, must not commit.
-- Locks: key share on the job's row of running_jobs, so that a rescue waits for this commit. Index:
-- running_jobs_one_claim_a_job.
create function pgqueue.record_step(job_id bigint, lease bigint, name text, result jsonb)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    taken_in smallint;
begin
    select r.attempt into taken_in from pgqueue.running_jobs as r
     where r.id = record_step.job_id and r.lease = record_step.lease for key share;
    if not found then
        raise exception using errcode = 'PQ004', message = format('job %s: the lease was lost', coalesce(record_step.job_id::text, 'null')),
            hint = 'Another attempt may have begun; this one''s step is not recorded.';
    end if;
    if record_step.name is null then
        raise exception using errcode = 'PQ001', message = format('job %s: a step without a name', record_step.job_id),
            hint = 'By its name a later attempt finds what it returned.';
    end if;
    insert into pgqueue.job_steps (job_id, name, attempt, recorded_at, result)
    values (record_step.job_id, record_step.name, taken_in, clock_timestamp(), coalesce(record_step.result, 'null'))
    on conflict on constraint job_steps_taken_once do nothing;
    if not found then
        raise exception using errcode = 'PQ001', message = format('job %s: the step %s was taken before', record_step.job_id, pgqueue.as_given(record_step.name)),
            hint = 'Give each step of a job a name of its own.';
    end if;
end $$;
comment on function pgqueue.record_step(bigint, bigint, text, jsonb) is
'Records a step of a running job. PQ004 when the lease was lost.';

-- sql/2_functions/worker/sync_schedules.sql
-- Brings the schedules that an app's code defines to what the code says now: adds, changes, and removes those of `owner`
-- that it does not have any more. One made by hand, or by another app, is left alone, and told.
-- Called by a worker at its start. schedules: an array of objects keyed like the arguments of schedule. starts: whether
-- the worker was started, and not replaced: then those at_startup are due.
-- Locks: a lock a owner, the schedules' rows. Index: schedules_one_row_a_name.
create function pgqueue.sync_schedules(owner text, schedules jsonb, starts boolean)
returns table (name text, outcome text) language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
declare
    wanted jsonb;
begin
    if not coalesce(length(owner) between 1 and 200, false) then
        raise exception using errcode = 'PQ001', message = format('owner: %s is not a name', pgqueue.as_given(owner)),
            hint = 'The app''s name, of 1 to 200 characters: what it does not define any more is removed.';
    end if;
    if not coalesce(jsonb_typeof(schedules) = 'array', false) or jsonb_path_exists(schedules, 'strict $[*] ? (@.type() != "object")') then
        raise exception using errcode = 'PQ001', message = 'schedules: expected a JSON array of objects',
            hint = 'Each keyed like the arguments of pgqueue.schedule.';
    end if;
    perform pg_advisory_xact_lock(hashtextextended('pgqueue.sync_schedules ' || owner, 0));
    for wanted in select s.item from jsonb_array_elements(schedules) as s (item) order by s.item ->> 'name' loop
        name := wanted ->> 'name';
        if exists (select from pgqueue.schedules as s where s.name = wanted ->> 'name' and s.owner is distinct from sync_schedules.owner) then
            outcome := 'foreign';
        else
            outcome := pgqueue.put_schedule(wanted ->> 'name', sync_schedules.owner, wanted - 'name');
            if starts and outcome <> 'foreign' then
                update pgqueue.schedules as s set due_at = clock_timestamp()
                 where s.name = wanted ->> 'name' and s.at_startup and s.due_at = 'infinity' and s.problem is null
                   and not exists (select from pgqueue.schedule_runs as r
                                    where r.schedule = s.name and r.outcome <> 'by_hand'
                                      and r.due_at > clock_timestamp() - make_interval(secs => s.grace));
                if found then
                    perform pgqueue.wake_leader('-infinity');
                end if;
            end if;
        end if;
        return next;
    end loop;
    outcome := 'removed';
    for name in
        select s.name from pgqueue.schedules as s
         where s.owner = sync_schedules.owner
           and s.name not in (select w.item ->> 'name' from jsonb_array_elements(schedules) as w (item))
         order by s.name
    loop
        perform pgqueue.unschedule(name);
        return next;
    end loop;
end $$;
comment on function pgqueue.sync_schedules(text, jsonb, boolean) is
'Makes the schedules of an app what its code says. Returns each with what became of it: created, changed, unchanged, removed, or foreign (made by hand or by another app, and left alone).';

-- sql/3_views/00_schema.sql
-- The public reading side: stable, versioned, without payloads. Never read the tables.
create schema pgqueue_bi;
comment on schema pgqueue_bi is 'pgqueue for analysts and BI tools: views that stay stable. Times are timestamptz named *_at, durations double precision named *_seconds.';

-- sql/3_views/audit.sql
-- What operators did.
create view pgqueue_bi.audit as
select a.id, a.acted_at, a.role, a.actor, a.verb::text as verb, a.target::text as target, a.jobs,
       array_to_string(a.job_ids, ', ') as job_ids, a.filter, a.details
  from pgqueue.audit as a;

comment on view   pgqueue_bi.audit is 'What operators did: cancel, replay, pause, ... One row a call that changed something.';
comment on column pgqueue_bi.audit.id is 'The order in which they did it.';
comment on column pgqueue_bi.audit.acted_at is 'When.';
comment on column pgqueue_bi.audit.role is 'Who: the role that had logged in.';
comment on column pgqueue_bi.audit.actor is 'Who, in its own words: the setting pgqueue.actor; the command says user@host.';
comment on column pgqueue_bi.audit.verb is 'What: the function that was called.';
comment on column pgqueue_bi.audit.target is 'The queue, schedule or worker; null: jobs.';
comment on column pgqueue_bi.audit.jobs is 'How many jobs it changed; null: it is not about jobs.';
comment on column pgqueue_bi.audit.job_ids is 'The first 20 of them.';
comment on column pgqueue_bi.audit.filter is 'How they were chosen, in the caller''s words; null: by id.';
comment on column pgqueue_bi.audit.details is 'What else was said: a reason, the settings of a queue. Never a job''s args.';

-- sql/3_views/dead_letters.sql
-- Jobs that will not be tried again by themselves.
create view pgqueue_bi.dead_letters as
select d.id, d.queue::text as queue, d.task::text as task, (d.lane / 2)::integer as priority, d.reason::text as reason, d.error,
       d.message, d.fingerprint::text as fingerprint, d.attempt::integer as attempt, d.max_attempts::integer as max_attempts, d.crashes::integer as crashes,
       d.created_at, d.run_at, d.claimed_at, d.died_at,
       date_part('epoch', d.died_at - d.created_at) as life_seconds,
       date_part('epoch', d.died_at - d.claimed_at) as run_seconds, d.worker_id
  from pgqueue.dead_letters as d;

comment on view   pgqueue_bi.dead_letters is 'Jobs that will not be tried again by themselves, until they are replayed or discarded; without their arguments.';
comment on column pgqueue_bi.dead_letters.id is 'The job''s id.';
comment on column pgqueue_bi.dead_letters.queue is 'The queue.';
comment on column pgqueue_bi.dead_letters.task is 'The task.';
comment on column pgqueue_bi.dead_letters.priority is '0 (first) to 9.';
comment on column pgqueue_bi.dead_letters.reason is 'Why: exhausted, permanent, failed, invalid_args or crashed.';
comment on column pgqueue_bi.dead_letters.error is 'The class of the last error.';
comment on column pgqueue_bi.dead_letters.message is 'The text of the last error.';
comment on column pgqueue_bi.dead_letters.fingerprint is 'That of the last error: see failures; null: it has none.';
comment on column pgqueue_bi.dead_letters.attempt is 'Attempts made.';
comment on column pgqueue_bi.dead_letters.max_attempts is 'Attempts allowed.';
comment on column pgqueue_bi.dead_letters.crashes is 'How often a worker process died while it ran this job, or may have.';
comment on column pgqueue_bi.dead_letters.created_at is 'When it was enqueued.';
comment on column pgqueue_bi.dead_letters.run_at is 'When its last attempt was due.';
comment on column pgqueue_bi.dead_letters.claimed_at is 'When its last attempt was claimed.';
comment on column pgqueue_bi.dead_letters.died_at is 'When its last attempt ended.';
comment on column pgqueue_bi.dead_letters.life_seconds is 'Seconds from created_at to died_at.';
comment on column pgqueue_bi.dead_letters.run_seconds is 'Seconds that its last attempt took, from claim to end.';
comment on column pgqueue_bi.dead_letters.worker_id is 'The worker of its last attempt.';

-- sql/3_views/failures.sql
-- Failed attempts by what caused them, grouped by upkeep/roll_up.sql.
create view pgqueue_bi.failures as
select g.fingerprint::text as fingerprint, g.queue::text as queue, g.task::text as task, g.error, g.failures, g.dead, g.first_seen_at,
       g.last_seen_at, g.message as sample_message, g.job_id as sample_job_id
  from pgqueue.failure_groups as g;

comment on view   pgqueue_bi.failures is 'Failed attempts, grouped by what caused them; up to the last minute that was rolled up, forgotten 100 days after the last.';
comment on column pgqueue_bi.failures.fingerprint is 'The same for errors that come from the same place; where there is none, the class of the error.';
comment on column pgqueue_bi.failures.queue is 'The queue.';
comment on column pgqueue_bi.failures.task is 'The task.';
comment on column pgqueue_bi.failures.error is 'The class of the latest error.';
comment on column pgqueue_bi.failures.failures is 'How many attempts have failed.';
comment on column pgqueue_bi.failures.dead is 'How many of them made a dead letter.';
comment on column pgqueue_bi.failures.first_seen_at is 'When the first of them failed.';
comment on column pgqueue_bi.failures.last_seen_at is 'When the latest of them failed.';
comment on column pgqueue_bi.failures.sample_message is 'The text of the latest error, 1,000 characters of it at the most.';
comment on column pgqueue_bi.failures.sample_job_id is 'The job of the latest error.';

-- sql/3_views/fleet.sql
-- Who looks after the whole, and how fresh its figures are.
create view pgqueue_bi.fleet as
select nullif(l.led_at, '-infinity') as led_at,
       case when isfinite(l.led_at)
            then greatest(0, date_part('epoch', clock_timestamp() - l.led_at)) end as leader_seconds,
       nullif(c.counted_at, '-infinity') as counted_at, nullif(p.rolled_up_to, '-infinity') as rolled_up_at,
       case when isfinite(p.rolled_up_to)
            then greatest(0, date_part('epoch', clock_timestamp() - p.rolled_up_to)) end as figures_seconds,
       w.workers, w.slots
  from pgqueue.leadership as l
 cross join pgqueue.depth_count as c
 cross join pgqueue.rollup_progress as p
 cross join (select count(*) as workers, coalesce(sum(w.concurrency), 0)::bigint as slots
               from pgqueue.workers as w
               join pgqueue.heartbeats as h on h.worker_id = w.id and h.beat_at > clock_timestamp() - w.lease) as w;

comment on view   pgqueue_bi.fleet is 'All workers together, and what their leader does: one row.';
comment on column pgqueue_bi.fleet.led_at is 'When a round of upkeep was last led, noted every few seconds; null: never.';
comment on column pgqueue_bi.fleet.leader_seconds is 'Seconds since then.';
comment on column pgqueue_bi.fleet.counted_at is 'When jobs were counted last: see queue_health; null: never.';
comment on column pgqueue_bi.fleet.rolled_up_at is 'The end of the last minute that was rolled up; null: none was.';
comment on column pgqueue_bi.fleet.figures_seconds is 'Seconds since then: somewhat over 60 where a leader does its work.';
comment on column pgqueue_bi.fleet.workers is 'Workers whose heartbeat is within their lease.';
comment on column pgqueue_bi.fleet.slots is 'How many jobs these can run at once.';

-- sql/3_views/job_throughput_daily.sql
-- What happened in each UTC day, rolled up by upkeep/roll_up.sql.
create view pgqueue_bi.job_throughput_daily as
select r.bucket_at, r.queue::text as queue, r.task::text as task, r.enqueued, r.completed, r.cancelled, r.failed, r.dead, r.depth,
       r.wait_seconds / nullif(r.completed, 0) as wait_avg_seconds, r.wait_p50 as wait_p50_seconds,
       r.wait_p95 as wait_p95_seconds, r.wait_p99 as wait_p99_seconds, r.run_seconds / nullif(r.completed, 0) as run_avg_seconds,
       r.run_p50 as run_p50_seconds, r.run_p95 as run_p95_seconds, r.run_p99 as run_p99_seconds
  from pgqueue.rollups as r
 where r.period = 'day';

comment on view   pgqueue_bi.job_throughput_daily is 'What happened to the jobs of each queue and task, by UTC day: all days; the day under way grows by the minute. No row where nothing happened and no job was unfinished.';
comment on column pgqueue_bi.job_throughput_daily.bucket_at is 'When the UTC day began.';
comment on column pgqueue_bi.job_throughput_daily.queue is 'The queue.';
comment on column pgqueue_bi.job_throughput_daily.task is 'The task.';
comment on column pgqueue_bi.job_throughput_daily.enqueued is 'Jobs that were enqueued, or replayed. Derived from the change of depth and from what ended: right over several minutes, in a single one it may be some seconds off.';
comment on column pgqueue_bi.job_throughput_daily.completed is 'Jobs that completed.';
comment on column pgqueue_bi.job_throughput_daily.cancelled is 'Jobs that were cancelled, discarded dead letters among them.';
comment on column pgqueue_bi.job_throughput_daily.failed is 'Attempts that failed or crashed, those that made a dead letter among them.';
comment on column pgqueue_bi.job_throughput_daily.dead is 'Jobs that became dead letters.';
comment on column pgqueue_bi.job_throughput_daily.depth is 'Unfinished jobs at the end, as counted last: ready, scheduled, blocked and running.';
comment on column pgqueue_bi.job_throughput_daily.wait_avg_seconds is 'Seconds that a completed job had waited on average, from due to the claim of its last attempt.';
comment on column pgqueue_bi.job_throughput_daily.wait_p50_seconds is 'Seconds that half of the completed jobs had not waited longer than. Percentiles are wrong by a tenth at the most.';
comment on column pgqueue_bi.job_throughput_daily.wait_p95_seconds is 'Seconds that 95% of the completed jobs had not waited longer than.';
comment on column pgqueue_bi.job_throughput_daily.wait_p99_seconds is 'Seconds that 99% of the completed jobs had not waited longer than.';
comment on column pgqueue_bi.job_throughput_daily.run_avg_seconds is 'Seconds that the last attempt of a completed job took on average, from claim to end.';
comment on column pgqueue_bi.job_throughput_daily.run_p50_seconds is 'Seconds that half of those attempts did not exceed.';
comment on column pgqueue_bi.job_throughput_daily.run_p95_seconds is 'Seconds that 95% of those attempts did not exceed.';
comment on column pgqueue_bi.job_throughput_daily.run_p99_seconds is 'Seconds that 99% of those attempts did not exceed.';

-- sql/3_views/job_throughput_hourly.sql
-- What happened in each hour, rolled up by upkeep/roll_up.sql.
create view pgqueue_bi.job_throughput_hourly as
select r.bucket_at, r.queue::text as queue, r.task::text as task, r.enqueued, r.completed, r.cancelled, r.failed, r.dead, r.depth,
       r.wait_seconds / nullif(r.completed, 0) as wait_avg_seconds, r.wait_p50 as wait_p50_seconds,
       r.wait_p95 as wait_p95_seconds, r.wait_p99 as wait_p99_seconds, r.run_seconds / nullif(r.completed, 0) as run_avg_seconds,
       r.run_p50 as run_p50_seconds, r.run_p95 as run_p95_seconds, r.run_p99 as run_p99_seconds
  from pgqueue.rollups as r
 where r.period = 'hour';

comment on view   pgqueue_bi.job_throughput_hourly is 'What happened to the jobs of each queue and task, by hour: the last 100 days; the hour under way grows by the minute. No row where nothing happened and no job was unfinished.';
comment on column pgqueue_bi.job_throughput_hourly.bucket_at is 'When the hour began.';
comment on column pgqueue_bi.job_throughput_hourly.queue is 'The queue.';
comment on column pgqueue_bi.job_throughput_hourly.task is 'The task.';
comment on column pgqueue_bi.job_throughput_hourly.enqueued is 'Jobs that were enqueued, or replayed. Derived from the change of depth and from what ended: right over several minutes, in a single one it may be some seconds off.';
comment on column pgqueue_bi.job_throughput_hourly.completed is 'Jobs that completed.';
comment on column pgqueue_bi.job_throughput_hourly.cancelled is 'Jobs that were cancelled, discarded dead letters among them.';
comment on column pgqueue_bi.job_throughput_hourly.failed is 'Attempts that failed or crashed, those that made a dead letter among them.';
comment on column pgqueue_bi.job_throughput_hourly.dead is 'Jobs that became dead letters.';
comment on column pgqueue_bi.job_throughput_hourly.depth is 'Unfinished jobs at the end, as counted last: ready, scheduled, blocked and running.';
comment on column pgqueue_bi.job_throughput_hourly.wait_avg_seconds is 'Seconds that a completed job had waited on average, from due to the claim of its last attempt.';
comment on column pgqueue_bi.job_throughput_hourly.wait_p50_seconds is 'Seconds that half of the completed jobs had not waited longer than. Percentiles are wrong by a tenth at the most.';
comment on column pgqueue_bi.job_throughput_hourly.wait_p95_seconds is 'Seconds that 95% of the completed jobs had not waited longer than.';
comment on column pgqueue_bi.job_throughput_hourly.wait_p99_seconds is 'Seconds that 99% of the completed jobs had not waited longer than.';
comment on column pgqueue_bi.job_throughput_hourly.run_avg_seconds is 'Seconds that the last attempt of a completed job took on average, from claim to end.';
comment on column pgqueue_bi.job_throughput_hourly.run_p50_seconds is 'Seconds that half of those attempts did not exceed.';
comment on column pgqueue_bi.job_throughput_hourly.run_p95_seconds is 'Seconds that 95% of those attempts did not exceed.';
comment on column pgqueue_bi.job_throughput_hourly.run_p99_seconds is 'Seconds that 99% of those attempts did not exceed.';

-- sql/3_views/job_throughput_minutely.sql
-- What happened in each minute, rolled up by upkeep/roll_up.sql.
create view pgqueue_bi.job_throughput_minutely as
select r.bucket_at, r.queue::text as queue, r.task::text as task, r.enqueued, r.completed, r.cancelled, r.failed, r.dead, r.depth,
       r.wait_seconds / nullif(r.completed, 0) as wait_avg_seconds, r.wait_p50 as wait_p50_seconds,
       r.wait_p95 as wait_p95_seconds, r.wait_p99 as wait_p99_seconds, r.run_seconds / nullif(r.completed, 0) as run_avg_seconds,
       r.run_p50 as run_p50_seconds, r.run_p95 as run_p95_seconds, r.run_p99 as run_p99_seconds
  from pgqueue.rollups as r
 where r.period = 'minute' and r.bucket_at < (select p.rolled_up_to from pgqueue.rollup_progress as p)
   and r.bucket_at >= (select p.rolled_up_to - interval '12 hours' from pgqueue.rollup_progress as p);

comment on view   pgqueue_bi.job_throughput_minutely is 'What happened to the jobs of each queue and task, by minute: the last 12 hours; the minutes that are over; the latest comes some seconds after its end. No row where nothing happened and no job was unfinished.';
comment on column pgqueue_bi.job_throughput_minutely.bucket_at is 'When the minute began.';
comment on column pgqueue_bi.job_throughput_minutely.queue is 'The queue.';
comment on column pgqueue_bi.job_throughput_minutely.task is 'The task.';
comment on column pgqueue_bi.job_throughput_minutely.enqueued is 'Jobs that were enqueued, or replayed. Derived from the change of depth and from what ended: right over several minutes, in a single one it may be some seconds off.';
comment on column pgqueue_bi.job_throughput_minutely.completed is 'Jobs that completed.';
comment on column pgqueue_bi.job_throughput_minutely.cancelled is 'Jobs that were cancelled, discarded dead letters among them.';
comment on column pgqueue_bi.job_throughput_minutely.failed is 'Attempts that failed or crashed, those that made a dead letter among them.';
comment on column pgqueue_bi.job_throughput_minutely.dead is 'Jobs that became dead letters.';
comment on column pgqueue_bi.job_throughput_minutely.depth is 'Unfinished jobs at the end, as counted last: ready, scheduled, blocked and running.';
comment on column pgqueue_bi.job_throughput_minutely.wait_avg_seconds is 'Seconds that a completed job had waited on average, from due to the claim of its last attempt.';
comment on column pgqueue_bi.job_throughput_minutely.wait_p50_seconds is 'Seconds that half of the completed jobs had not waited longer than. Percentiles are wrong by a tenth at the most.';
comment on column pgqueue_bi.job_throughput_minutely.wait_p95_seconds is 'Seconds that 95% of the completed jobs had not waited longer than.';
comment on column pgqueue_bi.job_throughput_minutely.wait_p99_seconds is 'Seconds that 99% of the completed jobs had not waited longer than.';
comment on column pgqueue_bi.job_throughput_minutely.run_avg_seconds is 'Seconds that the last attempt of a completed job took on average, from claim to end.';
comment on column pgqueue_bi.job_throughput_minutely.run_p50_seconds is 'Seconds that half of those attempts did not exceed.';
comment on column pgqueue_bi.job_throughput_minutely.run_p95_seconds is 'Seconds that 95% of those attempts did not exceed.';
comment on column pgqueue_bi.job_throughput_minutely.run_p99_seconds is 'Seconds that 99% of those attempts did not exceed.';

-- sql/3_views/jobs.sql
-- Every job, whatever its state.
create view pgqueue_bi.jobs as
select r.id, 'ready'::text as state, r.queue::text as queue, r.task::text as task, (r.lane / 2)::integer as priority,
       r.attempt::integer as attempt, r.max_attempts::integer as max_attempts, r.crashes::integer as crashes,
       r.created_at, r.run_at, null::timestamptz as claimed_at, null::timestamptz as finished_at,
       null::bigint as worker_id, null::text as reason
  from pgqueue.ready_jobs as r
union all
select s.id, 'scheduled', s.queue, s.task, s.lane / 2, s.attempt, s.max_attempts, s.crashes,
       s.created_at, s.run_at, null, null, null, null
  from pgqueue.scheduled_jobs as s
union all
select b.id, 'blocked', b.queue, b.task, b.lane / 2, b.attempt, b.max_attempts, b.crashes,
       b.created_at, b.run_at, null, null, null, null
  from pgqueue.blocked_jobs as b
union all
select r.id, 'running', r.queue, r.task, r.lane / 2, r.attempt, r.max_attempts, r.crashes,
       r.created_at, r.run_at, r.claimed_at, null, r.worker_id, null
  from pgqueue.running_jobs as r
union all
select f.id, f.state, f.queue, f.task, f.lane / 2, f.attempt, f.max_attempts, f.crashes,
       f.created_at, f.run_at, f.claimed_at, f.finished_at, f.worker_id, f.reason
  from pgqueue.finished_jobs as f
union all
select d.id, 'dead', d.queue, d.task, d.lane / 2, d.attempt, d.max_attempts, d.crashes,
       d.created_at, d.run_at, d.claimed_at, d.died_at, d.worker_id, d.reason
  from pgqueue.dead_letters as d;

comment on view   pgqueue_bi.jobs is 'Every job in whatever state, without its arguments.';
comment on column pgqueue_bi.jobs.id is 'The job''s id.';
comment on column pgqueue_bi.jobs.state is 'scheduled, ready, blocked, running, completed, cancelled or dead.';
comment on column pgqueue_bi.jobs.queue is 'The queue.';
comment on column pgqueue_bi.jobs.task is 'The task.';
comment on column pgqueue_bi.jobs.priority is '0 (first) to 9.';
comment on column pgqueue_bi.jobs.attempt is 'Attempts made.';
comment on column pgqueue_bi.jobs.max_attempts is 'Attempts allowed.';
comment on column pgqueue_bi.jobs.crashes is 'How often a worker process died while it ran this job, or may have.';
comment on column pgqueue_bi.jobs.created_at is 'When it was enqueued.';
comment on column pgqueue_bi.jobs.run_at is 'When it is or became due.';
comment on column pgqueue_bi.jobs.claimed_at is 'When its last attempt was claimed.';
comment on column pgqueue_bi.jobs.finished_at is 'When it completed, was cancelled or died.';
comment on column pgqueue_bi.jobs.worker_id is 'The worker of the last attempt.';
comment on column pgqueue_bi.jobs.reason is 'Why it was cancelled or died; of a completed one, why its result was not kept.';

-- sql/3_views/queue_health.sql
-- The state of each queue: what upkeep/count_depths.sql has counted, and the last five minutes that were rolled up.
create view pgqueue_bi.queue_health as
select n.queue::text as queue,
       coalesce(q.paused_at is not null and coalesce(q.resumes_at > clock_timestamp(), true), false) as is_paused,
       q.paused_at, q.resumes_at,
       coalesce(d.ready, 0)::bigint as ready, coalesce(d.scheduled, 0)::bigint as scheduled,
       coalesce(d.blocked, 0)::bigint as blocked, coalesce(d.running, 0)::bigint as running, coalesce(d.dead, 0)::bigint as dead,
       d.oldest_ready_at,
       case when d.oldest_ready_at is not null
            then greatest(0, date_part('epoch', clock_timestamp() - d.oldest_ready_at)) end as oldest_ready_seconds,
       d.oldest_claimed_at,
       case when d.oldest_claimed_at is not null
            then greatest(0, date_part('epoch', clock_timestamp() - d.oldest_claimed_at)) end as oldest_running_seconds,
       coalesce(r.completed, 0)::double precision / 5 as completed_per_minute,
       coalesce(r.failed, 0)::double precision / 5 as failed_per_minute,
       r.failed::double precision / nullif(r.completed + r.failed, 0)::double precision as failure_ratio,
       coalesce(w.workers, 0)::bigint as workers, coalesce(w.slots, 0)::bigint as slots,
       q.max_depth, q.max_oldest as max_oldest_seconds, nullif(c.counted_at, '-infinity') as counted_at,
       nullif(p.rolled_up_to, '-infinity') as rolled_up_at, q.max_failure_ratio, q.tolerated_dead
  from (select d.queue from pgqueue.depths as d
        union select q.name from pgqueue.queues as q
        union select s.queue from pgqueue.workers as w cross join unnest(w.queues) as s (queue)
        union select r.queue from pgqueue.rollups as r where r.period = 'last_hour') as n
 cross join pgqueue.depth_count as c
 cross join pgqueue.rollup_progress as p
  left join pgqueue.queues as q on q.name = n.queue
  left join (select d.queue, sum(d.ready) as ready, sum(d.scheduled) as scheduled, sum(d.blocked) as blocked,
                    sum(d.running) as running, sum(d.dead) as dead, min(d.oldest_ready_at) as oldest_ready_at,
                    min(d.oldest_claimed_at) as oldest_claimed_at
               from pgqueue.depths as d group by d.queue) as d on d.queue = n.queue
  left join (select r.queue, sum(r.completed) as completed, sum(r.failed) as failed
               from pgqueue.rollups as r
              where r.period = 'minute'  -- bounded at both ends, or the planner expects a third of all minutes
                and r.bucket_at >= (select l.rolled_up_to - interval '5 minutes' from pgqueue.rollup_progress as l)
                and r.bucket_at < (select l.rolled_up_to from pgqueue.rollup_progress as l)
              group by r.queue) as r on r.queue = n.queue
  left join (select s.queue, count(*) as workers, sum(least(w.concurrency, q.worker_limit)) as slots
               from pgqueue.workers as w
               join pgqueue.heartbeats as h on h.worker_id = w.id and h.beat_at > clock_timestamp() - w.lease
              cross join unnest(w.queues) as s (queue)
               left join pgqueue.queues as q on q.name = s.queue
              group by s.queue) as w on w.queue = n.queue;

comment on view   pgqueue_bi.queue_health is 'The state of each queue: its jobs as counted at counted_at, what became of jobs in the five minutes before rolled_up_at, and its workers now.';
comment on column pgqueue_bi.queue_health.queue is 'The queue.';
comment on column pgqueue_bi.queue_health.is_paused is 'Whether no job of it is claimed now.';
comment on column pgqueue_bi.queue_health.paused_at is 'Since when it is paused; null: it is not.';
comment on column pgqueue_bi.queue_health.resumes_at is 'When it goes on by itself; null: when somebody resumes it.';
comment on column pgqueue_bi.queue_health.ready is 'Jobs that may be claimed.';
comment on column pgqueue_bi.queue_health.scheduled is 'Jobs that wait for their time, retries among them.';
comment on column pgqueue_bi.queue_health.blocked is 'Jobs that wait for another one to end.';
comment on column pgqueue_bi.queue_health.running is 'Jobs in the hands of a worker.';
comment on column pgqueue_bi.queue_health.dead is 'Dead letters.';
comment on column pgqueue_bi.queue_health.oldest_ready_at is 'When the ready job became due that has waited longest; null: none is ready.';
comment on column pgqueue_bi.queue_health.oldest_ready_seconds is 'Seconds since then.';
comment on column pgqueue_bi.queue_health.oldest_claimed_at is 'When the running job was claimed that has run longest; null: none runs.';
comment on column pgqueue_bi.queue_health.oldest_running_seconds is 'Seconds since then.';
comment on column pgqueue_bi.queue_health.completed_per_minute is 'Jobs that completed, a minute, over the last five minutes that were rolled up.';
comment on column pgqueue_bi.queue_health.failed_per_minute is 'Attempts that failed or crashed, a minute, over the same time.';
comment on column pgqueue_bi.queue_health.failure_ratio is 'The share of failed among the attempts that completed or failed in the same time, 0 to 1; null: there were none.';
comment on column pgqueue_bi.queue_health.workers is 'Workers that serve the queue and whose heartbeat is within their lease.';
comment on column pgqueue_bi.queue_health.slots is 'How many jobs of the queue these can run at once.';
comment on column pgqueue_bi.queue_health.max_depth is 'Ready jobs above which the queue counts as unhealthy; null: no threshold.';
comment on column pgqueue_bi.queue_health.max_oldest_seconds is 'Seconds of oldest_ready_seconds above which the queue counts as unhealthy; null: no threshold.';
comment on column pgqueue_bi.queue_health.counted_at is 'When its jobs were counted: at most 10 seconds ago, or longer when nothing has changed since, or when counting takes over half a second; null: never.';
comment on column pgqueue_bi.queue_health.rolled_up_at is 'The end of the last minute that was rolled up; null: none was.';
comment on column pgqueue_bi.queue_health.max_failure_ratio is 'The failure_ratio, 0 to 1, above which the queue counts as unhealthy, from 10 attempts in the five minutes on; null: no threshold.';
comment on column pgqueue_bi.queue_health.tolerated_dead is 'Dead letters above which the queue counts as unhealthy; null: no threshold.';

-- sql/3_views/queues.sql
-- What operators have set for queues.
create view pgqueue_bi.queues as
select q.name::text as queue, q.paused_at, q.resumes_at, q.worker_limit, q.max_attempts, q.timeout as timeout_seconds,
       q.target_wait as target_wait_seconds, date_part('epoch', q.keep_completed) as keep_completed_seconds,
       date_part('epoch', q.keep_cancelled) as keep_cancelled_seconds, date_part('epoch', q.keep_dead) as keep_dead_seconds,
       q.max_completed, q.max_cancelled, q.max_dead, q.max_depth, q.max_oldest as max_oldest_seconds,
       q.max_failure_ratio, q.tolerated_dead
  from pgqueue.queues as q;

comment on view   pgqueue_bi.queues is 'What operators have set for queues: a row for each that has, or had, a setting of its own. Null: the default.';
comment on column pgqueue_bi.queues.queue is 'The queue.';
comment on column pgqueue_bi.queues.paused_at is 'Since when no job of it is claimed; null: not paused.';
comment on column pgqueue_bi.queues.resumes_at is 'When it goes on by itself; null: when somebody resumes it.';
comment on column pgqueue_bi.queues.worker_limit is 'How many slots of each worker it may take; null: all of them.';
comment on column pgqueue_bi.queues.max_attempts is 'Attempts that its jobs have when neither their task nor their enqueue says; null: 5.';
comment on column pgqueue_bi.queues.timeout_seconds is 'Seconds that an attempt may take when neither its task nor its enqueue says; null: as long as it takes.';
comment on column pgqueue_bi.queues.target_wait_seconds is 'Seconds that a job should wait at the most, from due to claimed; null: no target.';
comment on column pgqueue_bi.queues.keep_completed_seconds is 'Seconds that completed jobs are kept; 0: not at all; null: 7 days.';
comment on column pgqueue_bi.queues.keep_cancelled_seconds is 'Seconds that cancelled jobs are kept; 0: not at all; null: 7 days.';
comment on column pgqueue_bi.queues.keep_dead_seconds is 'Seconds that dead letters are kept; 0: not at all; null: for ever.';
comment on column pgqueue_bi.queues.max_completed is 'How many completed jobs are kept, the latest; null: any number.';
comment on column pgqueue_bi.queues.max_cancelled is 'How many cancelled jobs are kept, the latest; null: any number.';
comment on column pgqueue_bi.queues.max_dead is 'How many dead letters are kept, the latest; null: any number.';
comment on column pgqueue_bi.queues.max_depth is 'Ready jobs above which the queue is unhealthy; null: any number is healthy.';
comment on column pgqueue_bi.queues.max_oldest_seconds is 'Seconds that the oldest ready job has waited, above which the queue is unhealthy; null: any age is healthy.';
comment on column pgqueue_bi.queues.max_failure_ratio is 'The share of failed among the attempts of five minutes, 0 to 1, above which the queue is unhealthy; null: any is healthy.';
comment on column pgqueue_bi.queues.tolerated_dead is 'Dead letters above which the queue is unhealthy; null: any number is healthy. How many are kept at all is max_dead.';

-- sql/3_views/schedules.sql
-- The rules by which jobs are enqueued, and what became of their due times.
create view pgqueue_bi.schedules as
select s.name::text as name, s.owner::text as owner, s.task::text as task, s.queue::text as queue, s.priority::integer as priority,
       s.max_attempts::integer as max_attempts, s.cron, s.seconds::text as seconds, s.every as every_seconds, s.at as once_at,
       s.at_startup, s.tz, s.starts_at, s.ends_at, s.jitter as jitter_seconds, s.grace as grace_seconds,
       s.missed::text as missed, s.missed_limit, s.overlap::text as overlap, s.created_at, s.paused_at,
       case when s.paused_at is null and isfinite(s.due_at) then s.due_at end as next_due_at,
       last.due_at as last_due_at, last.ran_at as last_ran_at, last.outcome::text as last_outcome, last.job_id as last_job_id,
       s.problem
  from pgqueue.schedules as s
  left join lateral (select r.due_at, r.ran_at, r.outcome, r.job_id from pgqueue.schedule_runs as r
                      where r.schedule = s.name order by r.due_at desc limit 1) as last on true;

comment on view   pgqueue_bi.schedules is 'Rules by which jobs are enqueued: by cron, at an interval, once, at a worker''s start.';
comment on column pgqueue_bi.schedules.name is 'The schedule.';
comment on column pgqueue_bi.schedules.owner is 'The app whose code defines it; null: made by hand.';
comment on column pgqueue_bi.schedules.task is 'The task of its jobs.';
comment on column pgqueue_bi.schedules.queue is 'The queue of its jobs.';
comment on column pgqueue_bi.schedules.priority is 'The priority of its jobs, 0 (first) to 9.';
comment on column pgqueue_bi.schedules.max_attempts is 'Attempts that each of its jobs has.';
comment on column pgqueue_bi.schedules.cron is 'Its cron expression; null: it has another timing.';
comment on column pgqueue_bi.schedules.seconds is 'Where the seconds of a cron expression of six fields are: first or last.';
comment on column pgqueue_bi.schedules.every_seconds is 'Seconds between two due times; null: it has another timing.';
comment on column pgqueue_bi.schedules.once_at is 'Its only due time; null: it has another timing.';
comment on column pgqueue_bi.schedules.at_startup is 'Whether it is due when a worker of its app starts.';
comment on column pgqueue_bi.schedules.tz is 'The time zone of the cron expression.';
comment on column pgqueue_bi.schedules.starts_at is 'No due time lies before it.';
comment on column pgqueue_bi.schedules.ends_at is 'No due time lies after it.';
comment on column pgqueue_bi.schedules.jitter_seconds is 'Seconds by which a job is delayed at the most, at random.';
comment on column pgqueue_bi.schedules.grace_seconds is 'Seconds by which a due time may be late and still count as on time.';
comment on column pgqueue_bi.schedules.missed is 'What becomes of missed due times: skip, once or all.';
comment on column pgqueue_bi.schedules.missed_limit is 'How many missed due times run at the most, when all of them should.';
comment on column pgqueue_bi.schedules.overlap is 'While its last job is unfinished: allow another, skip the due time, or queue one behind it.';
comment on column pgqueue_bi.schedules.created_at is 'When it was made.';
comment on column pgqueue_bi.schedules.paused_at is 'Since when it does not run; null: not paused.';
comment on column pgqueue_bi.schedules.next_due_at is 'Its next due time; null: paused, not computed yet, or never again.';
comment on column pgqueue_bi.schedules.last_due_at is 'Its last due time on record.';
comment on column pgqueue_bi.schedules.last_ran_at is 'When that one was ticked.';
comment on column pgqueue_bi.schedules.last_outcome is 'What became of it: see schedule_runs.outcome.';
comment on column pgqueue_bi.schedules.last_job_id is 'Its job.';
comment on column pgqueue_bi.schedules.problem is 'Why it cannot run; null: it can.';

create view pgqueue_bi.schedule_runs as
select r.schedule::text as schedule, r.due_at, r.ran_at,
       extract(epoch from r.ran_at - r.due_at)::double precision as late_seconds,
       r.outcome::text as outcome, r.missed, r.job_id,
       case
           when r.job_id is null then null
           when r.state is not null then nullif(r.state, 'unknown')::text
           when exists (select from pgqueue.ready_jobs as j where j.id = r.job_id) then 'ready'
           when exists (select from pgqueue.scheduled_jobs as j where j.id = r.job_id) then 'scheduled'
           when exists (select from pgqueue.blocked_jobs as j where j.id = r.job_id) then 'blocked'
           when exists (select from pgqueue.running_jobs as j where j.id = r.job_id) then 'running'
           when exists (select from pgqueue.dead_letters as j where j.id = r.job_id) then 'dead'
           else (select f.state::text from pgqueue.finished_jobs as f where f.id = r.job_id limit 1)
       end as job_state
  from pgqueue.schedule_runs as r;

comment on view   pgqueue_bi.schedule_runs is 'What became of each due time of a schedule: of the last 7 days, and the last 100 at least.';
comment on column pgqueue_bi.schedule_runs.schedule is 'The schedule.';
comment on column pgqueue_bi.schedule_runs.due_at is 'The due time.';
comment on column pgqueue_bi.schedule_runs.ran_at is 'When it was ticked.';
comment on column pgqueue_bi.schedule_runs.late_seconds is 'Seconds between the two.';
comment on column pgqueue_bi.schedule_runs.outcome is 'enqueued; caught_up (late, by the policy for missed ones); missed; overlapped (the job before was unfinished); joined (a job that waits already stands for it too); by_hand.';
comment on column pgqueue_bi.schedule_runs.missed is 'How many due times that did not run this row stands for, which have none of their own; of a missed one, itself too.';
comment on column pgqueue_bi.schedule_runs.job_id is 'The job that it made, or met; null: none.';
comment on column pgqueue_bi.schedule_runs.job_state is 'The state of that job; null: none, or not on record any more.';

-- sql/3_views/slo.sql
-- Target waits against what happened, rolled up by upkeep/roll_up.sql.
create view pgqueue_bi.slo as
select q.name::text as queue, q.target_wait as target_wait_seconds, nullif(p.rolled_up_to, '-infinity') - interval '1 hour' as from_at,
       nullif(p.rolled_up_to, '-infinity') as until_at, coalesce(r.targeted, 0) as completed, coalesce(r.in_target, 0) as in_target,
       r.in_target::double precision / nullif(r.targeted, 0) as in_target_ratio,
       r.wait_p50 as wait_p50_seconds, r.wait_p95 as wait_p95_seconds, r.wait_p99 as wait_p99_seconds,
       d.oldest_ready_at,
       case when d.oldest_ready_at is not null
            then greatest(0, date_part('epoch', clock_timestamp() - d.oldest_ready_at)) end as oldest_ready_seconds,
       coalesce(date_part('epoch', clock_timestamp() - d.oldest_ready_at) > q.target_wait, false) as is_late
  from pgqueue.queues as q
 cross join pgqueue.rollup_progress as p
  left join pgqueue.rollups as r on r.period = 'last_hour' and r.queue = q.name and r.task = ''
  left join (select d.queue, min(d.oldest_ready_at) as oldest_ready_at from pgqueue.depths as d group by d.queue) as d
    on d.queue = q.name
 where q.target_wait is not null;

comment on view   pgqueue_bi.slo is 'The queues that have a target wait, and how long their jobs have waited in the last hour.';
comment on column pgqueue_bi.slo.queue is 'The queue.';
comment on column pgqueue_bi.slo.target_wait_seconds is 'Seconds that a job should wait at the most, from due to claimed.';
comment on column pgqueue_bi.slo.from_at is 'When that hour began.';
comment on column pgqueue_bi.slo.until_at is 'When it ended: the last minute that was rolled up.';
comment on column pgqueue_bi.slo.completed is 'Jobs that completed in it while the queue had a target.';
comment on column pgqueue_bi.slo.in_target is 'Those of them that had not waited longer than the target of then.';
comment on column pgqueue_bi.slo.in_target_ratio is 'The share of these, 0 to 1; null: none completed.';
comment on column pgqueue_bi.slo.wait_p50_seconds is 'Seconds that half of the jobs that completed in that hour had not waited longer than. Percentiles are wrong by a tenth at the most.';
comment on column pgqueue_bi.slo.wait_p95_seconds is 'Seconds that 95% of them had not waited longer than.';
comment on column pgqueue_bi.slo.wait_p99_seconds is 'Seconds that 99% of them had not waited longer than.';
comment on column pgqueue_bi.slo.oldest_ready_at is 'When the ready job became due that waits longest, as last counted; null: none is ready.';
comment on column pgqueue_bi.slo.oldest_ready_seconds is 'Seconds since then.';
comment on column pgqueue_bi.slo.is_late is 'Whether that job has waited longer than the target.';

-- sql/3_views/task_latency.sql
-- How long jobs have waited and run in the last hour, rolled up by upkeep/roll_up.sql.
create view pgqueue_bi.task_latency as
select r.queue::text as queue, r.task::text as task, r.bucket_at as from_at, r.bucket_at + interval '1 hour' as until_at, r.completed,
       r.failed, r.failed::double precision / nullif(r.completed + r.failed, 0) as failure_ratio,
       r.wait_seconds / nullif(r.completed, 0) as wait_avg_seconds, r.wait_p50 as wait_p50_seconds,
       r.wait_p95 as wait_p95_seconds, r.wait_p99 as wait_p99_seconds, r.run_seconds / nullif(r.completed, 0) as run_avg_seconds,
       r.run_p50 as run_p50_seconds, r.run_p95 as run_p95_seconds, r.run_p99 as run_p99_seconds
  from pgqueue.rollups as r
 where r.period = 'last_hour' and r.task <> '' and r.completed + r.failed > 0;

comment on view   pgqueue_bi.task_latency is 'How long the jobs of each queue and task have waited and run in the last hour; only those of which one completed or an attempt failed.';
comment on column pgqueue_bi.task_latency.queue is 'The queue.';
comment on column pgqueue_bi.task_latency.task is 'The task.';
comment on column pgqueue_bi.task_latency.from_at is 'When that hour began.';
comment on column pgqueue_bi.task_latency.until_at is 'When it ended: the last minute that was rolled up.';
comment on column pgqueue_bi.task_latency.completed is 'Jobs that completed in it.';
comment on column pgqueue_bi.task_latency.failed is 'Attempts that failed or crashed in it.';
comment on column pgqueue_bi.task_latency.failure_ratio is 'The share of failed among the attempts that completed or failed, 0 to 1; null: there were none.';
comment on column pgqueue_bi.task_latency.wait_avg_seconds is 'Seconds that a completed job had waited on average, from due to the claim of its last attempt.';
comment on column pgqueue_bi.task_latency.wait_p50_seconds is 'Seconds that half of the completed jobs had not waited longer than. Percentiles are wrong by a tenth at the most.';
comment on column pgqueue_bi.task_latency.wait_p95_seconds is 'Seconds that 95% of the completed jobs had not waited longer than.';
comment on column pgqueue_bi.task_latency.wait_p99_seconds is 'Seconds that 99% of the completed jobs had not waited longer than.';
comment on column pgqueue_bi.task_latency.run_avg_seconds is 'Seconds that the last attempt of a completed job took on average, from claim to end.';
comment on column pgqueue_bi.task_latency.run_p50_seconds is 'Seconds that half of those attempts did not exceed.';
comment on column pgqueue_bi.task_latency.run_p95_seconds is 'Seconds that 95% of those attempts did not exceed.';
comment on column pgqueue_bi.task_latency.run_p99_seconds is 'Seconds that 99% of those attempts did not exceed.';

-- sql/3_views/workers.sql
-- Who works, by the last heartbeat.
create view pgqueue_bi.workers as
select w.id, w.supervisor_id, w.host, w.pid, w.version, array_to_string(w.queues, ', ') as queues, w.concurrency,
       w.started_at, h.beat_at,
       case when h.beat_at is not null
            then greatest(0, date_part('epoch', clock_timestamp() - h.beat_at)) end as silent_seconds,
       array_to_string(w.unknown_tasks, ', ') as unknown_tasks
  from pgqueue.workers as w
  left join pgqueue.heartbeats as h on h.worker_id = w.id;

comment on view   pgqueue_bi.workers is 'Registered worker processes.';
comment on column pgqueue_bi.workers.id is 'The worker''s id.';
comment on column pgqueue_bi.workers.supervisor_id is 'The supervisor process above it.';
comment on column pgqueue_bi.workers.host is 'Where it runs.';
comment on column pgqueue_bi.workers.pid is 'Its process id there.';
comment on column pgqueue_bi.workers.version is 'Its version of pgqueue.';
comment on column pgqueue_bi.workers.queues is 'The queues that it serves.';
comment on column pgqueue_bi.workers.concurrency is 'How many jobs it runs at once.';
comment on column pgqueue_bi.workers.started_at is 'When it registered.';
comment on column pgqueue_bi.workers.beat_at is 'Its last heartbeat; null: there is none on record.';
comment on column pgqueue_bi.workers.silent_seconds is 'Seconds since its last heartbeat; null: there is none on record.';
comment on column pgqueue_bi.workers.unknown_tasks is 'Tasks whose jobs it had to put back, because its app does not have them.';

-- sql/3_views/z_health.sql
-- Whether all is well: a row a check. Called z_, because it reads the view queue_health and files run in the order of ls.
--
-- What upkeep has counted is as old as upkeep: when no worker is alive nobody counts. Then, and only then, the first job of each
-- lane is looked at, and the first of the scheduled ones.
create view pgqueue_bi.health as
with recursive queue as materialized (
    select h.queue, h.is_paused, h.ready, h.dead, h.oldest_ready_seconds, h.failure_ratio, h.workers,
           round(5 * (h.completed_per_minute + h.failed_per_minute))::bigint as attempts,
           h.max_depth, h.max_oldest_seconds, h.max_failure_ratio, h.tolerated_dead
      from pgqueue_bi.queue_health as h
), fleet as materialized (
    select count(*) as workers, count(*) filter (where h.beat_at > clock_timestamp() - w.lease) as alive,
           date_part('epoch', clock_timestamp() - min(w.started_at)) as seconds,
           greatest(30, date_part('epoch', max(w.lease))) as patience
      from pgqueue.workers as w left join pgqueue.heartbeats as h on h.worker_id = w.id
), leader as materialized (
    -- a fleet that has just been started has had no time to lead
    select case when f.workers > 0
                then greatest(0, least(date_part('epoch', clock_timestamp() - nullif(l.led_at, '-infinity')), f.seconds))
           end as seconds, f.workers, f.patience, f.seconds as fleet_seconds
      from pgqueue.leadership as l cross join fleet as f
), head (queue, lane, run_at) as (
    (select r.queue, r.lane, r.run_at from pgqueue.ready_jobs as r
      where (select f.alive from fleet as f) = 0 order by r.queue, r.lane, r.position limit 1)
    union all
    select n.queue, n.lane, n.run_at
      from head
     cross join lateral (select r.queue, r.lane, r.run_at from pgqueue.ready_jobs as r
                          where (r.queue, r.lane) > (head.queue, head.lane)
                          order by r.queue, r.lane, r.position limit 1) as n
), due as materialized (
    select s.queue, s.run_at from pgqueue.scheduled_jobs as s
     where (select f.alive from fleet as f) = 0 order by s.run_at limit 1
), line as (
    select n.queue, max(n.seconds) as seconds
      from (select q.queue, coalesce(q.oldest_ready_seconds, 0) as seconds from queue as q
            union all
            select h.queue, date_part('epoch', clock_timestamp() - h.run_at) from head as h
            union all
            select d.queue, date_part('epoch', clock_timestamp() - d.run_at) from due as d where d.run_at < clock_timestamp()) as n
     group by n.queue
), served as (
    select l.queue, coalesce(q.is_paused, false) as is_paused, coalesce(q.workers, 0) as workers,
           case when coalesce(q.is_paused or q.workers > 0, false) then 0 else greatest(0, l.seconds) end as seconds
      from line as l left join queue as q on q.queue = l.queue
), late as materialized (
    select s.name, s.problem,
           case when s.due_at = 'infinity' then 0
                else greatest(0, date_part('epoch', clock_timestamp() - case when isfinite(s.due_at) then s.due_at else s.changed_at end))
           end as seconds
      from pgqueue.schedules as s
     where s.paused_at is null and (s.due_at < clock_timestamp() or s.problem is not null)
), latest as (
    select coalesce(max(l.seconds), 0) as seconds, count(*) filter (where l.problem is not null) as broken,
           (array_agg(l.name order by l.problem is null, l.seconds desc))[1] as name,
           (array_agg(l.problem order by l.problem is null, l.seconds desc))[1] as problem
      from late as l
)
select null::text as queue, 'leader'::text as check_name, l.seconds::double precision as value,
       l.patience::double precision as threshold, coalesce(l.seconds <= l.patience, true) as is_healthy,
       case when l.workers = 0 then 'no worker is registered'
            when l.seconds <= l.patience then 'upkeep is led'
            else format('nobody has led upkeep for %s s, though workers are registered', round(l.seconds)) end as detail
  from leader as l
union all
select null, 'figures', f.seconds, 300, coalesce(f.seconds <= 300, true),
       case when f.seconds is null then 'nobody leads upkeep, so no figures are kept'
            when f.seconds <= 300 then format('the last minute that was rolled up ended %s s ago', round(f.seconds))
            else format('nothing has been rolled up for %s s: a transaction that ends jobs may have been open since', round(f.seconds)) end
  from (select case when l.seconds <= l.patience
                    then greatest(0, least(date_part('epoch', clock_timestamp() - nullif(p.rolled_up_to, '-infinity')), l.fleet_seconds))
               end as seconds
          from leader as l cross join pgqueue.rollup_progress as p) as f
union all
select null, 'schedules', s.seconds, 60, s.seconds <= 60 and s.broken = 0,
       case when s.broken > 0 then format('the schedule %s cannot run: %s', s.name, s.problem)
            when s.seconds > 60 then format('the schedule %s has been due for %s s', s.name, round(s.seconds))
            else 'no schedule is late' end
  from latest as s
union all
select s.queue::text, 'workers', s.seconds, 60, s.seconds <= 60,
       case when s.is_paused then 'the queue is paused'
            when s.workers > 0 then format('workers that serve the queue: %s', s.workers)
            when s.seconds = 0 then 'no worker serves the queue, and nothing waits in it'
            else format('jobs have waited for %s s, and no worker serves the queue', round(s.seconds)) end
  from served as s
union all
select q.queue::text, 'depth', q.ready, q.max_depth, q.ready <= q.max_depth,
       format('ready jobs: %s, allowed: %s', q.ready, q.max_depth)
  from queue as q where q.max_depth is not null
union all
select q.queue::text, 'oldest_age', coalesce(q.oldest_ready_seconds, 0), q.max_oldest_seconds,
       coalesce(q.oldest_ready_seconds <= q.max_oldest_seconds, true),
       case when q.oldest_ready_seconds is null then 'no job is ready'
            else format('the oldest ready job has waited for %s s, allowed: %s s', round(q.oldest_ready_seconds), q.max_oldest_seconds) end
  from queue as q where q.max_oldest_seconds is not null
union all
select q.queue::text, 'failure_ratio', q.failure_ratio, q.max_failure_ratio,
       coalesce(q.attempts < 10 or q.failure_ratio <= q.max_failure_ratio, true),
       case when q.attempts < 10 then format('attempts within five minutes: %s, too few to judge by', q.attempts)
            else format('of %s attempts within five minutes %s%% have failed, allowed: %s%%', q.attempts,
                        round((100 * q.failure_ratio)::numeric, 1), round((100 * q.max_failure_ratio)::numeric, 1)) end
  from queue as q where q.max_failure_ratio is not null
union all
select q.queue::text, 'dead', q.dead, q.tolerated_dead, q.dead <= q.tolerated_dead,
       format('dead letters: %s, allowed: %s', q.dead, q.tolerated_dead)
  from queue as q where q.tolerated_dead is not null;

comment on view   pgqueue_bi.health is 'Whether all is well: a row a check. Of each queue: workers, and depth, oldest_age, failure_ratio and dead where a threshold is set; of the whole: leader, figures, schedules.';
comment on column pgqueue_bi.health.queue is 'The queue that the check is about; null: it is about the whole.';
comment on column pgqueue_bi.health.check_name is 'depth (ready jobs), oldest_age (seconds that the oldest of them has waited), failure_ratio (0 to 1, of the attempts of five minutes), dead (dead letters), workers (seconds that jobs have waited while no worker serves their queue); leader (seconds since upkeep was led, while workers are registered), figures (seconds since the last minute that was rolled up), schedules (seconds by which one is late).';
comment on column pgqueue_bi.health.value is 'What was found, in the unit of the check; null: there is nothing to judge.';
comment on column pgqueue_bi.health.threshold is 'What the value must not exceed.';
comment on column pgqueue_bi.health.is_healthy is 'Whether it does not. A failure ratio counts from 10 attempts on; a schedule that cannot run is not healthy.';
comment on column pgqueue_bi.health.detail is 'The same, as a sentence for a person.';

-- migrations/version_table.sql
-- Where the history notes how far it has come. Not part of sql/: a schema installed by hand has none.
create table pgqueue.alembic_version (
    version_num varchar(32) not null,
    constraint alembic_version_pkc primary key (version_num)
);
grant select on pgqueue.alembic_version to public;  -- for `pgqueue db status` of whoever may use the schema
comment on table pgqueue.alembic_version is 'The revision of pgqueue''s own migrations; nothing of the application''s.';
comment on column pgqueue.alembic_version.version_num is 'The newest revision that was applied.';
