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
