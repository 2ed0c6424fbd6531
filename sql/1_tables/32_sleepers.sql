-- Idle workers that want a NOTIFY. Every enqueue reads it, so it must stay tiny: a worker registers at most
-- 5 times a second and stays registered until it has been busy for 200 ms.
-- Unlogged: after a crash of the server nobody sleeps, every worker reconnects and looks.

create unlogged table pgqueue.sleepers (
    queue     text        collate "C" not null,
    worker_id bigint      not null,
    slept_at  timestamptz not null,
    constraint sleepers_one_row_a_worker primary key (queue, worker_id)
) with (fillfactor = 50);

comment on table  pgqueue.sleepers is 'Idle workers, by queue. Enqueue notifies channel pgqueue_<worker_id> of as many as it brings jobs.';
comment on column pgqueue.sleepers.queue is 'A queue that the worker serves.';
comment on column pgqueue.sleepers.worker_id is 'The worker.';
comment on column pgqueue.sleepers.slept_at is 'When it fell asleep or was last seen asleep; older than 25 s does not count; -infinity: awake.';
