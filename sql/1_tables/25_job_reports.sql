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
