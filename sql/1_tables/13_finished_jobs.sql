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
