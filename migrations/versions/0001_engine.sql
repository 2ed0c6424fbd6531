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
'The range of protocols that this schema serves. Every worker and producer asks it once, before it touches data.';

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
    name      text        collate "C" not null,
    paused_at timestamptz,
    constraint queues_one_row_a_name primary key (name)
);

comment on table  pgqueue.queues is 'What operators have set for a queue, effective at once. No row: the defaults.';
comment on column pgqueue.queues.name is 'The queue.';
comment on column pgqueue.queues.paused_at is 'Since when no job of it is claimed; null: not paused.';

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

comment on table  pgqueue.leadership is 'One row: who led the last round of upkeep.';
comment on column pgqueue.leadership.supervisor_id is 'The supervisor that led it; 0: nobody yet.';
comment on column pgqueue.leadership.led_at is 'When.';
comment on column pgqueue.leadership.resumed_at is 'When rounds began again after a gap in which nobody could beat: leases count from then.';
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

-- sql/2_functions/operator/cancel.sql
-- Cancels jobs in any state. One that waits or is dead is cancelled at once; one that runs is asked for, its worker told.
-- Called by operators and producers, in their transaction.
-- Locks: the jobs' rows, those of running_jobs in the order in which they lie, as endings do. Index: the primary keys.
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
    held_keys jsonb;
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
        ), blocked as (
            delete from pgqueue.blocked_jobs as j where j.id = any (missing)
            returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                      j.unique_key, j.options
        ), dead as (
            delete from pgqueue.dead_letters as j where j.id = any (missing)
            returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                      j.unique_key, j.options, j.worker_id, j.claimed_at
        ), gone as (
            select s.*, null::bigint as worker_id, null::timestamptz as claimed_at, true as holds_key from scheduled as s
            union all
            select r.*, null, null, true from ready as r
            union all
            select b.*, null, null, false from blocked as b
            union all
            select d.*, false from dead as d
        ), history as (
            insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane,
                                               attempt, max_attempts, crashes, queue, task, state, args, unique_key,
                                               options, reason)
            select g.id, g.worker_id, g.run_at, g.created_at, g.claimed_at, clock_timestamp(), today, g.lane, g.attempt,
                   g.max_attempts, g.crashes, g.queue, g.task, 'cancelled', g.args, g.unique_key, g.options, cancel.reason
              from gone as g
        ), answered as (
            delete from pgqueue.cancel_requests as c where c.job_id = any (missing) and c.job_id in (select g.id from gone as g)
        )
        select coalesce(array_agg(g.id), '{}'), jsonb_agg(jsonb_build_array(g.task, g.unique_key, g.id))
                   filter (where g.holds_key and g.unique_key is not null)
          into ended, held_keys from gone as g;
        if held_keys is not null then
            perform pgqueue.free_keys(held_keys, with_periods => true);
        end if;
        return query select e.id, 'cancelled' from unnest(ended) as e (id);
        with running as (
            select r.id, r.worker_id, r.lease from pgqueue.running_jobs as r
             where r.id = any (missing) order by r.ctid for update
        ), requested as (
            insert into pgqueue.cancel_requests (job_id, worker_id, lease, requested_at, reason)
            select r.id, r.worker_id, r.lease, clock_timestamp(), cancel.reason from running as r
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
    end loop;
    if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
        perform pgqueue.tell_waiters(all_ended);
    end if;
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
    reason text default 'cancelled', max_jobs integer default 1000
) returns table (id bigint, outcome text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    chosen bigint[];
begin
    if coalesce(of_queue, of_task, of_tag, of_state) is null then
        raise exception using errcode = 'PQ001', message = 'cancel_matching: no filter given',
            hint = 'Give at least one of of_queue, of_task, of_tag and of_state.';
    end if;
    if of_state is not null and of_state not in ('scheduled', 'ready', 'blocked', 'running') then
        raise exception using errcode = 'PQ001', message = format('of_state: %L is not one that can be cancelled', left(of_state, 40)),
            hint = 'scheduled, ready, blocked or running. Dead letters are discarded.';
    end if;
    chosen := array(
        select j.id
          from (select s.id, s.queue, s.task, s.options, 'scheduled' as state from pgqueue.scheduled_jobs as s
                union all
                select r.id, r.queue, r.task, r.options, 'ready' from pgqueue.ready_jobs as r
                union all
                select b.id, b.queue, b.task, b.options, 'blocked' from pgqueue.blocked_jobs as b
                union all
                select a.id, a.queue, a.task, a.options, 'running' from pgqueue.running_jobs as a
                 where not exists (select from pgqueue.cancel_requests as c where c.job_id = a.id and c.lease = a.lease)
               ) as j
         where (cancel_matching.of_queue is null or j.queue = cancel_matching.of_queue)
           and (cancel_matching.of_task is null or j.task = cancel_matching.of_task)
           and (cancel_matching.of_tag is null or j.options -> 'tags' ? cancel_matching.of_tag)
           and (cancel_matching.of_state is null or j.state = cancel_matching.of_state)
         order by j.id
         limit cancel_matching.max_jobs);
    return query select c.id, c.outcome from pgqueue.cancel(chosen, cancel_matching.reason) as c;
end $$;
comment on function pgqueue.cancel_matching(text, text, text, text, text, integer) is
'Cancels jobs that wait or run and match every filter given, at most max_jobs of them. Rows as of cancel().';

-- sql/2_functions/operator/discard.sql
-- Moves dead letters to the history as cancelled, reason discarded. Called by operators.
-- Locks: the letters' rows. Index: dead_letters_one_row_a_job.
create function pgqueue.discard(ids bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
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
    max_rows integer default 100
) returns table (id bigint, queue text, task text, priority smallint, reason text, error text, message text, attempt smallint,
                 max_attempts smallint, crashes smallint, created_at timestamptz, died_at timestamptz, args jsonb,
                 unique_key text, options jsonb, errors jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
    return query
    select d.id, d.queue, d.task, (d.lane / 2)::smallint, d.reason, d.error, d.message, d.attempt, d.max_attempts, d.crashes,
           d.created_at, d.died_at, d.args, d.unique_key, d.options, d.errors
      from pgqueue.dead_letters as d
     where (find_dead.of_ids is null or d.id = any (find_dead.of_ids))
       and (find_dead.of_queue is null or d.queue = find_dead.of_queue)
       and (find_dead.of_task is null or d.task = find_dead.of_task)
       and (find_dead.of_reason is null or d.reason = find_dead.of_reason)
       and (find_dead.of_error is null or strpos(lower(d.error || ': ' || coalesce(d.message, '')), lower(find_dead.of_error)) > 0)
       and (find_dead.died_after is null or d.died_at >= find_dead.died_after)
       and (find_dead.died_before is null or d.died_at < find_dead.died_before)
     order by d.died_at desc, d.id desc
     limit find_dead.max_rows;
end $$;
comment on function pgqueue.find_dead(bigint[], text, text, text, text, timestamptz, timestamptz, integer) is
'Dead letters that match every filter given, newest first. `of_error`: part of the error''s class or text, any case.';

-- sql/2_functions/operator/find_jobs.sql
-- The ids of jobs in any state by filter, newest first. Called by operators: jobs list, and before jobs cancel.
-- Locks: none. Index: the primary keys, backwards; the history is read a day after the other until there are enough.
create function pgqueue.find_jobs(
    of_states text[] default null, of_queue text default null, of_task text default null, of_tag text default null,
    max_rows integer default 100
) returns table (id bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    wanted constant text[] := coalesce(of_states, '{scheduled,ready,blocked,running,completed,cancelled,dead}');
    finished bigint[] := '{}';
    of_day date;
    found_here bigint[];
begin
    if not wanted <@ '{scheduled,ready,blocked,running,completed,cancelled,dead}'::text[] then
        raise exception using errcode = 'PQ001', message = format('of_states: %s', left(wanted::text, 80)),
            hint = 'scheduled, ready, blocked, running, completed, cancelled, dead.';
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
                 where f.day = of_day and f.state = any (wanted)
                   and (find_jobs.of_queue is null or f.queue = find_jobs.of_queue)
                   and (find_jobs.of_task is null or f.task = find_jobs.of_task)
                   and (find_jobs.of_tag is null or f.options -> 'tags' ? find_jobs.of_tag)
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
              where 'ready' = any (wanted)
                and (find_jobs.of_queue is null or r.queue = find_jobs.of_queue)
                and (find_jobs.of_task is null or r.task = find_jobs.of_task)
                and (find_jobs.of_tag is null or r.options -> 'tags' ? find_jobs.of_tag)
              order by r.id desc limit max_rows)
            union all
            (select s.id from pgqueue.scheduled_jobs as s
              where 'scheduled' = any (wanted)
                and (find_jobs.of_queue is null or s.queue = find_jobs.of_queue)
                and (find_jobs.of_task is null or s.task = find_jobs.of_task)
                and (find_jobs.of_tag is null or s.options -> 'tags' ? find_jobs.of_tag)
              order by s.id desc limit max_rows)
            union all
            (select b.id from pgqueue.blocked_jobs as b
              where 'blocked' = any (wanted)
                and (find_jobs.of_queue is null or b.queue = find_jobs.of_queue)
                and (find_jobs.of_task is null or b.task = find_jobs.of_task)
                and (find_jobs.of_tag is null or b.options -> 'tags' ? find_jobs.of_tag)
              order by b.id desc limit max_rows)
            union all
            (select r.id from pgqueue.running_jobs as r
              where 'running' = any (wanted)
                and (find_jobs.of_queue is null or r.queue = find_jobs.of_queue)
                and (find_jobs.of_task is null or r.task = find_jobs.of_task)
                and (find_jobs.of_tag is null or r.options -> 'tags' ? find_jobs.of_tag)
              order by r.id desc limit max_rows)
            union all
            (select d.id from pgqueue.dead_letters as d
              where 'dead' = any (wanted)
                and (find_jobs.of_queue is null or d.queue = find_jobs.of_queue)
                and (find_jobs.of_task is null or d.task = find_jobs.of_task)
                and (find_jobs.of_tag is null or d.options -> 'tags' ? find_jobs.of_tag)
              order by d.id desc limit max_rows)) as j
     order by j.id desc
     limit max_rows;
end $$;
comment on function pgqueue.find_jobs(text[], text, text, text, integer) is
'The ids of jobs that match every filter given, newest first. of_states: any of scheduled, ready, blocked, running, completed, cancelled, dead.';

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

-- sql/2_functions/operator/pause.sql
-- Stops and starts the claiming of a queue, at once, on every worker; running jobs go on. Called by operators.
-- Locks: the queue's row. Index: queues_one_row_a_name.
create function pgqueue.pause(queue text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into pgqueue.queues as q (name, paused_at) values (pause.queue, now())
    on conflict (name) do update set paused_at = coalesce(q.paused_at, excluded.paused_at);
end $$;
comment on function pgqueue.pause(text) is 'No job of the queue is claimed until resume. Running jobs go on.';

create function pgqueue.resume(queue text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgqueue.queues as q set paused_at = null where q.name = resume.queue;
    perform pgqueue.notify_sleepers(resume.queue, 1000);
end $$;
comment on function pgqueue.resume(text) is 'Jobs of the queue are claimed again.';

-- sql/2_functions/operator/replay.sql
-- Runs dead letters again, with attempts from 0. Called by operators.
-- A letter whose unique_key is held by another unfinished job stays where it is.
-- Locks: the letters' rows, their keys. Index: dead_letters_one_row_a_job.
create function pgqueue.replay(ids bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    letter record;
    replayed bigint[] := '{}';
begin
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
        select g.id, now(), g.created_at, g.lane, 0, g.max_attempts, 0, g.queue, g.task, g.args, g.unique_key, g.options
          from gone as g;
        replayed := replayed || letter.id;
        perform pgqueue.notify_sleepers(letter.queue, 1);
    end loop;
    return replayed;
end $$;
comment on function pgqueue.replay(bigint[]) is
'Makes dead letters ready again, attempts from 0. Returns the ids that were replayed; the others are no dead letters, or their unique_key is held.';

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
    max_attempts    integer          default 5,
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
-- Locks: as enqueue; keys are taken in sorted order, so that two bulks cannot deadlock. Index: the primary keys.
create function pgqueue.enqueue_many(jobs jsonb, out ids bigint[], out created boolean[], out outcomes text[])
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
declare
    total bigint;
    ready bigint;
    is_plain boolean;
    keyed boolean;
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
    keyed := jsonb_path_exists(jobs, '$[*].unique_key') or jsonb_path_exists(jobs, '$[*].idempotency_key');
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
             order by j.task, j.idempotency_key, j.n
        loop
            ids[item.n] := pgqueue.take_idempotency_key(item.task, item.idempotency_key, own_ids[item.n]);
            if ids[item.n] <> own_ids[item.n] then
                outcomes[item.n] := 'kept';
            end if;
        end loop;
        for item in
            select j.task, j.unique_key, j.idempotency_key, j.options -> 'unique' as how, j.n,
                   case when j.options #> '{unique, period}' is null then 'unique' else 'period' end as kind
              from rows from (jsonb_to_recordset(jobs) as (task text, unique_key text, idempotency_key text, options jsonb))
                   with ordinality as j (task, unique_key, idempotency_key, options, n)
             where j.unique_key is not null
             order by j.task, j.unique_key, kind, j.n
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
        if jsonb_path_exists(jobs, '$[*].options.unique') then
            asked := jobs;
            jobs := (select jsonb_agg(case when j.job #> '{options, unique}' is null then j.job else jsonb_set(
                                          j.job, '{options}', coalesce(pgqueue.options_to_store(j.job -> 'options'), 'null'))
                                      end order by j.n)
                       from jsonb_array_elements(jobs) with ordinality as j (job, n));
        end if;
    end if;
    -- The jobs without a time of their own: nearly always all of them, so one plain insert. What could not be stored is
    -- left out, and so missed below. Names are looked at once a queue and task.
    with inserted as (
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select j.id, now(), now(), 2 * coalesce(j.priority, 5) + 1, 0, coalesce(j.max_attempts, 5), 0,
               coalesce(j.queue, 'default'), j.task, coalesce(j.args, '{}'), j.unique_key, j.options
          from rows from (jsonb_to_recordset(jobs) as (task text, args jsonb, queue text, priority integer,
                   run_at timestamptz, delay double precision, max_attempts integer, unique_key text,
                   idempotency_key text, options jsonb), unnest(new_ids))
               as j (task, args, queue, priority, run_at, delay, max_attempts, unique_key, idempotency_key, options, id)
         where j.id is not null and j.run_at is null and j.delay is null and j.task is not null
           and (j.args is null or jsonb_typeof(j.args) = 'object')
           and (j.priority is null or j.priority between 0 and 9)
           and (j.max_attempts is null or j.max_attempts between 1 and 32767)
        returning queue, task, options is not null as has_options
    ), counted as (
        select i.queue, i.task, count(*) as jobs, bool_or(i.has_options) as has_options
          from inserted as i group by i.queue, i.task
    )
    select coalesce(array_agg(c.queue), '{}'), coalesce(array_agg(c.jobs), '{}'), coalesce(sum(c.jobs), 0),
           coalesce(bool_and(not c.has_options and length(c.task) between 1 and 200
                             and length(c.queue) between 1 and 100 and translate(c.queue, '*"''', '') = c.queue
                             and concat(c.task, c.queue) !~ '[[:cntrl:]]'), true)
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
        ), overdue as (
            insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                            args, unique_key, options)
            select g.id, g.due, now(), g.lane, 0, g.max_attempts, 0, g.queue, g.task, g.args, g.unique_key, g.options
              from given as g where g.due <= g.seen_at
            returning queue
        )
        select lines || coalesce(array_agg(o.queue), '{}'),
               line_jobs || coalesce(array_agg(1::bigint), '{}') into lines, line_jobs from overdue as o;
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
        select d.day::date from generate_series((after_at at time zone 'UTC')::date - 1, (until at time zone 'UTC')::date,
                                                interval '1 day') as d (day)) || date '-infinity';
begin
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
        raise exception using errcode = 'PQ001', message = format('channel: %L is not a waiter''s', left(channel, 40)),
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
            problem := format('task: %L is not a name', left(task, 40));
            remedy := 'A task''s name has 1 to 200 characters, none of them a control character.';
        when length(queue) not between 1 and 100 or queue ~ '[[:cntrl:]*"'']' then
            problem := format('queue: %L is not a name', left(queue, 40));
            remedy := 'A queue''s name has 1 to 100 characters: no control characters, quotes or asterisks.';
        when priority not between 0 and 9 then
            problem := format('priority: %s is out of range', priority);
            remedy := 'Priorities go from 0 (first) to 9.';
        when run_at is not null and delay is not null then
            problem := 'run_at and delay: both given';
            remedy := 'Give one of them.';
        when not isfinite(run_at) or run_at > clock_timestamp() + interval '100 years' then
            problem := format('run_at: %s is out of range', run_at);
            remedy := 'At most 100 years ahead.';
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
            if options ? 'unique' then
                perform pgqueue.reject_unique(options -> 'unique', unique_key, run_at is not null or delay is not null, place);
            end if;
            return;
    end case;
    raise exception using errcode = 'PQ001', message = place || problem, hint = remedy;
end $$;
comment on function pgqueue.reject_job(text, jsonb, text, integer, timestamptz, double precision, integer, text, text, jsonb, bigint) is
'Private. Raises PQ001 or PQ003 naming the first bad argument, with a hint; returns when there is none.';

-- The same for each job of a bulk, in order. Called by enqueue_many only after its cheap test has failed, or before keys
-- are taken. Locks: none.
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
end $$;
comment on function pgqueue.reject_jobs(jsonb) is
'Private. Raises PQ001 or PQ003 naming the first bad job of a bulk by its place; returns when there is none.';

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
            problem := format('options.unique: there is no %L', left(stranger, 40));
            remedy := 'Keys: scope, period, on_conflict, max_delay.';
        when unique_key is null then
            problem := 'options.unique: there is no unique_key';
            remedy := 'It says what the unique_key is to mean: give both.';
        when how ->> 'scope' not in ('unfinished', 'waiting') then
            problem := format('options.unique.scope: %L is none', left(how ->> 'scope', 40));
            remedy := 'unfinished or waiting.';
        when policy not in ('keep', 'replace', 'debounce', 'raise_priority', 'follow_up') then
            problem := format('options.unique.on_conflict: %L is none', left(policy, 40));
            remedy := 'keep, replace, debounce, raise_priority or follow_up.';
        when jsonb_typeof(how -> 'period') <> 'number' or not (how ->> 'period')::numeric between 0.001 and 315360000 then
            problem := format('options.unique.period: %s is out of range', left(coalesce(how ->> 'period', 'null'), 40));
            remedy := seconds;
        when jsonb_typeof(how -> 'max_delay') <> 'number' or not (how ->> 'max_delay')::numeric between 0.001 and 315360000 then
            problem := format('options.unique.max_delay: %s is out of range', left(coalesce(how ->> 'max_delay', 'null'), 40));
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
        ), due as (
            insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                            args, unique_key, options)
            select g.id, g.seen_at, g.created_at, g.lane, g.attempt, g.max_attempts, g.crashes, g.queue, g.task, g.args,
                   g.unique_key, g.options
              from gone as g where g.run_at <= g.seen_at
            returning queue
        )
        select array_agg(d.queue) into lines from due as d;
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
    update pgqueue.blocked_jobs as b set run_at = b.run_at - passed, created_at = b.created_at - passed;
    update pgqueue.blocked_jobs as b
       set run_at = b.run_at - passed, created_at = b.created_at - passed,
           options = case when b.options ? 'expires_at' then jsonb_set(b.options, '{expires_at}',
               to_jsonb((b.options ->> 'expires_at')::timestamptz - passed)) else b.options end;
    update pgqueue.unique_keys as k set expires_at = k.expires_at - passed where k.expires_at is not null;
    select count(*) into due from pgqueue.scheduled_jobs as s where s.run_at <= clock_timestamp();
    return due;
end $$;
comment on function pgqueue.travel(double precision) is
'For tests: moves the times of all jobs that wait, and of idempotency keys, back by `seconds`. Returns how many scheduled jobs are due now.';

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
                                          message, errors)
        select j.id, j.worker_id, j.run_at, j.created_at, j.claimed_at, j.failed_at, j.lane | 1, j.attempt,
               j.max_attempts, least(j.crashes + j.crashed::integer, 32767), j.queue, j.task, j.args, j.unique_key,
               j.options, 'crashed', 'pgqueue.Crashed', j.message,
               pgqueue.earlier_failures(j.id) || jsonb_build_object(
                   'attempt', j.attempt, 'failed_at', j.failed_at, 'error', 'pgqueue.Crashed', 'message', j.message,
                   'traceback', null)
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

-- sql/2_functions/upkeep/retain.sql
-- Makes the day partitions ahead, and forgets idempotency keys that have expired and steps of jobs that have ended, at
-- most 1,000 a call.
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
    return made;
end $$;
comment on function pgqueue.retain() is 'Makes the partitions of today and the next 7 days, forgets expired idempotency keys and the steps of ended jobs. Returns how many partitions it made.';

-- sql/2_functions/upkeep/upkeep.sql
-- One call a round: heartbeat, safety look, and for the leader rescue and promotion.
-- Called by every supervisor every few seconds. Leadership is a transaction lock inside this call and a row that says
-- when the last round was: nobody who is stopped, cut off or killed keeps it, and it works through any pooler.
-- Correctness never rests on it: rescue locks the worker's row, promote skips locked rows.
-- Locks: one advisory transaction lock, and those of rescue and promote. A duty that fails is reported in `problems`
-- and stops no other.
create function pgqueue.upkeep(
    supervisor_id bigint, worker_ids bigint[], queues text[], round_seconds double precision, overdue_seconds double precision
) returns table (missing bigint[], look boolean, led boolean, rescued integer, promoted integer, floors_due boolean,
                 retain_due boolean, next_seconds double precision, problems text[], rescued_workers bigint[])
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    round_at constant timestamptz := clock_timestamp();
    last pgqueue.leadership;
    worker record;
    next_due timestamptz;
    taken integer;
begin
    perform set_config('synchronous_commit', 'off', true);
    missing := pgqueue.heartbeat(upkeep.worker_ids);
    problems := '{}';
    rescued := 0;
    rescued_workers := '{}';
    promoted := 0;
    floors_due := false;
    retain_due := false;
    select * into last from pgqueue.leadership;
    led := (last.supervisor_id = upkeep.supervisor_id
            or last.led_at < round_at - make_interval(secs => overdue_seconds))
           and pg_try_advisory_xact_lock(hashtextextended('pgqueue.upkeep', 0));
    if led then
        -- After a gap in which no round was led (the database or the whole fleet was away) nobody could beat:
        -- leases count from now.
        if last.led_at < round_at - make_interval(secs => 2.5 * overdue_seconds) then
            last.resumed_at := round_at;
        end if;
        update pgqueue.leadership as l
           set supervisor_id = upkeep.supervisor_id, led_at = round_at, resumed_at = last.resumed_at
         where l.supervisor_id <> upkeep.supervisor_id or l.resumed_at <> last.resumed_at
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
                    taken := pgqueue.rescue(worker.id);
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
            promoted := pgqueue.promote(1000);
            select s.run_at into next_due from pgqueue.scheduled_jobs as s
             where s.run_at >= coalesce((select f.proven_run_at from pgqueue.floor_proofs as f
                                          where f.subject = 'scheduled_jobs' and f.proven_run_at <= round_at), '-infinity')
             order by s.run_at limit 1;
        exception when others then
            problems := problems || format('promote: %s', sqlerrm);
        end;
        begin
            if exists (select from pgqueue.blocked_jobs) then
                perform pgqueue.unblock_stranded();
            end if;
        exception when others then
            problems := problems || format('unblock: %s', sqlerrm);
        end;
        delete from pgqueue.sleepers as s
         using (select distinct q.queue from pgqueue.workers as w cross join unnest(w.queues) as q (queue)) as line
         where s.queue = line.queue and s.period > now() - interval '10 minutes' and s.period < now() - interval '35 seconds';
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
            or exists (select from pgqueue.job_steps as s where s.recorded_at < now() - interval '1 day');
    end if;
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
    next_seconds := case when led
        then greatest(0, least(round_seconds, extract(epoch from next_due - clock_timestamp())::double precision))
        else overdue_seconds end;
    return next;
end $$;
comment on function pgqueue.upkeep(bigint, bigint[], text[], double precision, double precision) is
'A round of upkeep. Beats for the workers; returns those registered no more (missing), whether a ready job has waited for over 1 s in one of the queues (look), whether this call led, and what it did; when to come back; problems; the workers whose jobs it took back.';

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
               attempt smallint, max_attempts smallint, crashes smallint, options text)
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
    perform set_config('synchronous_commit', 'off', true);
    perform from pgqueue.workers as w where w.id = claim.worker_id for key share;
    if not found then
        raise exception using errcode = 'PQ002', message = format('worker %s is not registered', claim.worker_id),
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
               p.max_attempts, p.crashes, p.options::text
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
'Claims up to max_jobs ready jobs (at most limits[i] of queues[i]) for a worker, under the lease `fence`. PQ002 when the worker is not registered.';

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
    completion_of constant jsonb := coalesce(
        (select jsonb_object_agg(concat(c.completion ->> 'id', ' ', c.completion ->> 'lease'), c.completion)
           from jsonb_array_elements(completions) as c (completion)), '{}');
begin
    with gone as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from jsonb_to_recordset(complete_with_results.completions) as e (id bigint, lease bigint)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id and h.lease = e.lease limit 1) as held))
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
    reason_of constant jsonb := jsonb_object(
        array(select concat(e.id, ' ', e.lease) from unnest(ids, leases) with ordinality as e (id, lease, n) order by e.n),
        reasons);
begin
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
    -- a look-up by id and lease, not a join: see complete
    failure_of constant jsonb := coalesce(
        (select jsonb_object_agg(concat(f.failure ->> 'id', ' ', f.failure ->> 'lease'), f.failure)
           from jsonb_array_elements(failures) as f (failure)), '{}');
begin
    with gone as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from jsonb_to_recordset(fail.failures) as e (id bigint, lease bigint)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id and h.lease = e.lease limit 1) as held))
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
    ), died as (
        insert into pgqueue.dead_letters (id, worker_id, run_at, created_at, claimed_at, died_at, lane, attempt,
                                          max_attempts, crashes, queue, task, args, unique_key, options, reason, error,
                                          message, errors)
        select e.id, e.worker_id, e.run_at, e.created_at, e.claimed_at, e.failed_at, e.lane | 1, e.attempt,
               e.max_attempts, e.crashes, e.queue, e.task, e.args, e.unique_key, e.options, e.reason, e.error, e.message,
               pgqueue.earlier_failures(e.id) || jsonb_build_object(
                   'attempt', e.attempt, 'failed_at', e.failed_at, 'error', e.error, 'message', e.message,
                   'traceback', e.traceback)
          from ended as e where e.is_dead
    )
    select coalesce(array_agg(e.id), '{}'), jsonb_agg(jsonb_build_array(e.task, e.unique_key, e.id))
               filter (where e.is_dead and e.unique_key is not null)
      into accepted, held_keys from ended as e;
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
    perform set_config('synchronous_commit', 'off', true);
    insert into pgqueue.job_progress as p (job_id, lease, noted_at, progress)
    select held.id, held.lease, clock_timestamp(), n.progress
      from (select r.id, r.lease, r.progress
              from jsonb_to_recordset(note_progress.notes) as r (id bigint, lease bigint, progress jsonb)
             where r.progress is not null order by r.id) as n
     cross join lateral (select h.id, h.lease from pgqueue.running_jobs as h
                          where h.id = n.id and h.lease = n.lease limit 1) as held
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
    perform set_config('synchronous_commit', 'off', true);
    with report as (
        select held.id, held.lease, held.worker_id, held.attempt, r.progress, r.lines
          from jsonb_to_recordset(note_reports.reports) as r (id bigint, lease bigint, progress jsonb, lines jsonb)
         cross join lateral (select h.id, h.lease, h.worker_id, h.attempt from pgqueue.running_jobs as h
                              where h.id = r.id and h.lease = r.lease limit 1) as held
    ), kept as (
        insert into pgqueue.job_reports (job_id, worker_id, reported_at, day, attempt, progress, lines)
        select r.id, r.worker_id, clock_timestamp(), today, r.attempt, r.progress, r.lines from report as r order by r.id
    )
    delete from pgqueue.job_progress as p
     where p.job_id = any (array(select r.id from report as r order by r.id));
end $$;
comment on function pgqueue.note_reports(jsonb) is
'Keeps the last progress and log lines of attempts that are about to end. reports: an array of {id, lease, progress, lines}; lines: an array of {at, level, text}.';

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
    insert into pgqueue.workers (supervisor_id, host, pid, version, queues, concurrency, lease, session_lock, started_at)
    values (register.supervisor_id, register.host, register.pid, register.version, register.queues,
            register.concurrency, make_interval(secs => register.lease), register.session_lock, now())
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
     where exists (select from pgqueue.workers as w where w.id = fall_asleep.worker_id)
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
begin
    return array(
        select l.virtualtransaction from pg_catalog.pg_locks as l
         where l.locktype = 'relation' and l.mode = 'RowExclusiveLock' and l.granted
           and l.database = (select d.oid from pg_catalog.pg_database as d where d.datname = current_database())
           and l.relation = ('pgqueue.' || writers.relation)::regclass
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
    -- a look-up by id and lease, not a join: see complete
    delay_of constant jsonb := jsonb_object(
        array(select concat(e.id, ' ', e.lease) from unnest(ids, leases) with ordinality as e (id, lease, n) order by e.n),
        delays::text[]);
begin
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
    )
    select coalesce(array_agg(e.id), '{}') into accepted from ended as e;
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
        raise exception using errcode = 'PQ004', message = format('job %s: the lease was lost', record_step.job_id),
            hint = 'Another attempt may have begun; this one''s step is not recorded.';
    end if;
    insert into pgqueue.job_steps (job_id, name, attempt, recorded_at, result)
    values (record_step.job_id, record_step.name, taken_in, clock_timestamp(), record_step.result);
end $$;
comment on function pgqueue.record_step(bigint, bigint, text, jsonb) is
'Records a step of a running job. PQ004 when the lease was lost.';

-- sql/3_views/jobs.sql
-- The public reading side: stable, versioned, without payloads. Never read the tables.
create schema pgqueue_bi;
comment on schema pgqueue_bi is 'pgqueue for analysts and BI tools: views that stay stable. Times are timestamptz named *_at, durations double precision named *_seconds.';

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

-- sql/3_views/workers.sql
-- Who works, by the last heartbeat.
create view pgqueue_bi.workers as
select w.id, w.supervisor_id, w.host, w.pid, w.version, array_to_string(w.queues, ', ') as queues, w.concurrency,
       w.started_at, h.beat_at,
       greatest(0, extract(epoch from clock_timestamp() - h.beat_at))::double precision as silent_seconds,
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
comment on column pgqueue_bi.workers.beat_at is 'Its last heartbeat.';
comment on column pgqueue_bi.workers.silent_seconds is 'Seconds since its last heartbeat.';
comment on column pgqueue_bi.workers.unknown_tasks is 'Tasks whose jobs it had to put back, because its app does not have them.';

-- migrations/version_table.sql
-- Where the history notes how far it has come. Not part of sql/: a schema installed by hand has none.
create table pgqueue.alembic_version (
    version_num varchar(32) not null,
    constraint alembic_version_pkc primary key (version_num)
);
grant select on pgqueue.alembic_version to public;  -- for `pgqueue db status` of whoever may use the schema
comment on table pgqueue.alembic_version is 'The revision of pgqueue''s own migrations; nothing of the application''s.';
comment on column pgqueue.alembic_version.version_num is 'The newest revision that was applied.';
