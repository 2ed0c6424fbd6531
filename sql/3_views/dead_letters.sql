-- Jobs that will not be tried again by themselves.
create view pgqueue_bi.dead_letters as
select d.id, d.queue::text as queue, d.task::text as task, (d.lane / 2)::integer as priority, d.reason::text as reason, d.error,
       d.message, d.fingerprint::text as fingerprint, d.attempt::integer as attempt, d.max_attempts::integer as max_attempts, d.crashes::integer as crashes,
       d.created_at, d.run_at, d.claimed_at, d.died_at,
       date_part('epoch', d.died_at - d.created_at) as life_seconds,
       date_part('epoch', d.died_at - d.claimed_at) as run_seconds, d.worker_id
  from pgqueue.dead_letters as d;

comment on view   pgqueue_bi.dead_letters is 'Jobs that will not be tried again by themselves, until they are replayed or discarded; without their arguments.';
comment on column pgqueue_bi.dead_letters.id is 'The job''s id.';
comment on column pgqueue_bi.dead_letters.queue is 'The queue.';
comment on column pgqueue_bi.dead_letters.task is 'The task.';
comment on column pgqueue_bi.dead_letters.priority is '0 (first) to 9.';
comment on column pgqueue_bi.dead_letters.reason is 'Why: exhausted, permanent, failed, invalid_args or crashed.';
comment on column pgqueue_bi.dead_letters.error is 'The class of the last error.';
comment on column pgqueue_bi.dead_letters.message is 'The text of the last error.';
comment on column pgqueue_bi.dead_letters.fingerprint is 'That of the last error: see failures; null: it has none.';
comment on column pgqueue_bi.dead_letters.attempt is 'Attempts made.';
comment on column pgqueue_bi.dead_letters.max_attempts is 'Attempts allowed.';
comment on column pgqueue_bi.dead_letters.crashes is 'How often a worker process died while it ran this job, or may have.';
comment on column pgqueue_bi.dead_letters.created_at is 'When it was enqueued.';
comment on column pgqueue_bi.dead_letters.run_at is 'When its last attempt was due.';
comment on column pgqueue_bi.dead_letters.claimed_at is 'When its last attempt was claimed.';
comment on column pgqueue_bi.dead_letters.died_at is 'When its last attempt ended.';
comment on column pgqueue_bi.dead_letters.life_seconds is 'Seconds from created_at to died_at.';
comment on column pgqueue_bi.dead_letters.run_seconds is 'Seconds that its last attempt took, from claim to end.';
comment on column pgqueue_bi.dead_letters.worker_id is 'The worker of its last attempt.';
