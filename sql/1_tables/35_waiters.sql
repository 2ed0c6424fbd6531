-- Who waits for the end of a job and wants a NOTIFY. Every ending looks whether there is anybody, so it must stay tiny.
-- A row counts for 35 s; a waiter renews it every 10 s, in a new period. Nothing deletes a row that still counts: so readers,
-- who look at the last periods alone, meet no dead versions, under a held snapshot neither. A waiter that dies leaves no more
-- than such a row.
-- Unlogged: after a crash of the server every waiter has lost its connection.

create unlogged table pgqueue.waiters (
    period  timestamptz not null,
    job_id  bigint      not null,
    channel text        collate "C" not null,
    constraint waiters_one_row_a_period primary key (period, job_id, channel)
);

comment on table  pgqueue.waiters is 'Who waits for the end of a job: endings notify the channel, with the job''s id.';
comment on column pgqueue.waiters.period is 'The ten seconds in which the waiter was last heard of.';
comment on column pgqueue.waiters.job_id is 'The job that is waited for.';
comment on column pgqueue.waiters.channel is 'The channel that the waiter listens on.';
