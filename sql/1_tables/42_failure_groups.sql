-- Failed attempts by what caused them, for views: written by the leader with the rollups (upkeep/roll_up.sql).

create table pgqueue.failure_groups (
    fingerprint   text        collate "C" not null,
    queue         text        collate "C" not null,
    task          text        collate "C" not null,
    error         text        not null,
    message       text        not null,
    job_id        bigint      not null,
    first_seen_at timestamptz not null,
    last_seen_at  timestamptz not null,
    failures      bigint      not null,
    dead          bigint      not null,
    constraint failure_groups_one_row_a_cause_and_task primary key (fingerprint, queue, task)
) with (fillfactor = 70);

comment on table  pgqueue.failure_groups is 'Failed attempts that have the same fingerprint, by queue and task; forgotten 100 days after the last.';
comment on column pgqueue.failure_groups.fingerprint is 'The same for errors that come from the same place; where there is none, the class of the error.';
comment on column pgqueue.failure_groups.queue is 'The queue.';
comment on column pgqueue.failure_groups.task is 'The task.';
comment on column pgqueue.failure_groups.error is 'The class of the error.';
comment on column pgqueue.failure_groups.message is 'The text of the latest one, 1,000 characters of it at the most.';
comment on column pgqueue.failure_groups.job_id is 'The job of the latest one.';
comment on column pgqueue.failure_groups.first_seen_at is 'When the first attempt failed.';
comment on column pgqueue.failure_groups.last_seen_at is 'When the latest attempt failed.';
comment on column pgqueue.failure_groups.failures is 'How many attempts have failed.';
comment on column pgqueue.failure_groups.dead is 'How many of them made a dead letter.';
