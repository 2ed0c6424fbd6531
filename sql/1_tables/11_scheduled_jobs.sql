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
