-- Who works. A worker is one child process; its supervisor beats for it.
-- Two tables, because claim reads and key-share-locks `workers`, which therefore never changes,
-- while the heartbeat changes all the time and would grow a chain of dead versions under a held snapshot.

create table pgqueue.workers (
    id            bigint      not null default nextval('pgqueue.worker_ids'),
    supervisor_id bigint      not null,
    host          text        not null,
    pid           integer     not null,
    version       text        not null,
    queues        text[]      collate "C" not null,
    concurrency   integer     not null,
    lease         interval    not null,
    session_lock  boolean     not null,
    started_at    timestamptz not null,
    unknown_tasks text[]      collate "C" not null default '{}',
    constraint workers_one_row_a_process primary key (id)
);
comment on table  pgqueue.workers is 'Worker processes that are registered. The row goes when the worker ends or is declared dead.';
comment on column pgqueue.workers.id is 'The worker''s id.';
comment on column pgqueue.workers.supervisor_id is 'The supervisor process above it: 63 random bits, also the key of its session advisory lock.';
comment on column pgqueue.workers.host is 'Where it runs.';
comment on column pgqueue.workers.pid is 'Its process id there.';
comment on column pgqueue.workers.version is 'Its pgqueue.__version__.';
comment on column pgqueue.workers.queues is 'The queues that it serves.';
comment on column pgqueue.workers.concurrency is 'Its slots: how many jobs it runs at once.';
comment on column pgqueue.workers.lease is 'How long its heartbeat may stand still before its jobs are given to others.';
comment on column pgqueue.workers.session_lock is 'Whether its supervisor holds a session advisory lock (not behind a transaction pooler).';
comment on column pgqueue.workers.started_at is 'When it registered.';
comment on column pgqueue.workers.unknown_tasks is 'Tasks whose jobs it had to put back, because its app does not have them.';

create table pgqueue.heartbeats (
    worker_id bigint      not null,
    beat_at   timestamptz not null,
    constraint heartbeats_one_row_a_worker primary key (worker_id)
) with (fillfactor = 50);  -- room for HOT updates in the page
comment on table  pgqueue.heartbeats is 'When each worker was last known to be alive.';
comment on column pgqueue.heartbeats.worker_id is 'The worker.';
comment on column pgqueue.heartbeats.beat_at is 'The last beat, by the database''s clock.';
