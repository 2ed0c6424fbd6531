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
