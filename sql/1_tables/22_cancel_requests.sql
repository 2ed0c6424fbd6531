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
