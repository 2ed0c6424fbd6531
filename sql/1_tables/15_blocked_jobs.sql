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
