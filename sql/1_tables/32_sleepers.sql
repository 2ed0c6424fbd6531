-- Idle workers that want a NOTIFY. Every enqueue reads it, so it must stay tiny: a worker registers at most
-- 5 times a second and stays registered until it has been busy for 200 ms.
-- A row is looked for by queue and period and never further back than 35 s: under a held snapshot no dead version can go,
-- and each nap leaves two of them; so the key changes every ten seconds, and readers walk over the last few alone.
-- Unlogged: after a crash of the server nobody sleeps, every worker reconnects and looks.

create unlogged table pgqueue.sleepers (
    queue     text        collate "C" not null,
    period    timestamptz not null,
    worker_id bigint      not null,
    slept_at  timestamptz not null,
    constraint sleepers_one_row_a_worker_and_period primary key (queue, period, worker_id)
) with (fillfactor = 50);

comment on table  pgqueue.sleepers is 'Idle workers, by queue. Enqueue notifies channel pgqueue_<worker_id> of as many as it brings jobs.';
comment on column pgqueue.sleepers.queue is 'A queue that the worker serves.';
comment on column pgqueue.sleepers.period is 'The ten seconds in which it fell asleep or was last seen asleep.';
comment on column pgqueue.sleepers.worker_id is 'The worker.';
comment on column pgqueue.sleepers.slept_at is 'When it fell asleep or was last seen asleep; older than 25 s does not count; -infinity: awake.';
