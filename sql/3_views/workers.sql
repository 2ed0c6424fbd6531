-- Who works, by the last heartbeat.
create view pgqueue_bi.workers as
select w.id, w.supervisor_id, w.host, w.pid, w.version, array_to_string(w.queues, ', ') as queues, w.concurrency,
       w.started_at, h.beat_at,
       case when h.beat_at is not null
            then greatest(0, date_part('epoch', clock_timestamp() - h.beat_at)) end as silent_seconds,
       array_to_string(w.unknown_tasks, ', ') as unknown_tasks
  from pgqueue.workers as w
  left join pgqueue.heartbeats as h on h.worker_id = w.id;

comment on view   pgqueue_bi.workers is 'Registered worker processes.';
comment on column pgqueue_bi.workers.id is 'The worker''s id.';
comment on column pgqueue_bi.workers.supervisor_id is 'The supervisor process above it.';
comment on column pgqueue_bi.workers.host is 'Where it runs.';
comment on column pgqueue_bi.workers.pid is 'Its process id there.';
comment on column pgqueue_bi.workers.version is 'Its version of pgqueue.';
comment on column pgqueue_bi.workers.queues is 'The queues that it serves.';
comment on column pgqueue_bi.workers.concurrency is 'How many jobs it runs at once.';
comment on column pgqueue_bi.workers.started_at is 'When it registered.';
comment on column pgqueue_bi.workers.beat_at is 'Its last heartbeat; null: there is none on record.';
comment on column pgqueue_bi.workers.silent_seconds is 'Seconds since its last heartbeat; null: there is none on record.';
comment on column pgqueue_bi.workers.unknown_tasks is 'Tasks whose jobs it had to put back, because its app does not have them.';
