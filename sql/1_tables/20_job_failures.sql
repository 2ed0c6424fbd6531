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
