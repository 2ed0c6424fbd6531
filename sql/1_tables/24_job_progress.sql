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
