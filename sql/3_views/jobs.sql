-- Every job, whatever its state.
create view pgqueue_bi.jobs as
select r.id, 'ready'::text as state, r.queue::text as queue, r.task::text as task, (r.lane / 2)::integer as priority,
       r.attempt::integer as attempt, r.max_attempts::integer as max_attempts, r.crashes::integer as crashes,
       r.created_at, r.run_at, null::timestamptz as claimed_at, null::timestamptz as finished_at,
       null::bigint as worker_id, null::text as reason
  from pgqueue.ready_jobs as r
union all
select s.id, 'scheduled', s.queue, s.task, s.lane / 2, s.attempt, s.max_attempts, s.crashes,
       s.created_at, s.run_at, null, null, null, null
  from pgqueue.scheduled_jobs as s
union all
select b.id, 'blocked', b.queue, b.task, b.lane / 2, b.attempt, b.max_attempts, b.crashes,
       b.created_at, b.run_at, null, null, null, null
  from pgqueue.blocked_jobs as b
union all
select r.id, 'running', r.queue, r.task, r.lane / 2, r.attempt, r.max_attempts, r.crashes,
       r.created_at, r.run_at, r.claimed_at, null, r.worker_id, null
  from pgqueue.running_jobs as r
union all
select f.id, f.state, f.queue, f.task, f.lane / 2, f.attempt, f.max_attempts, f.crashes,
       f.created_at, f.run_at, f.claimed_at, f.finished_at, f.worker_id, f.reason
  from pgqueue.finished_jobs as f
union all
select d.id, 'dead', d.queue, d.task, d.lane / 2, d.attempt, d.max_attempts, d.crashes,
       d.created_at, d.run_at, d.claimed_at, d.died_at, d.worker_id, d.reason
  from pgqueue.dead_letters as d;

comment on view   pgqueue_bi.jobs is 'Every job in whatever state, without its arguments.';
comment on column pgqueue_bi.jobs.id is 'The job''s id.';
comment on column pgqueue_bi.jobs.state is 'scheduled, ready, blocked, running, completed, cancelled or dead.';
comment on column pgqueue_bi.jobs.queue is 'The queue.';
comment on column pgqueue_bi.jobs.task is 'The task.';
comment on column pgqueue_bi.jobs.priority is '0 (first) to 9.';
comment on column pgqueue_bi.jobs.attempt is 'Attempts made.';
comment on column pgqueue_bi.jobs.max_attempts is 'Attempts allowed.';
comment on column pgqueue_bi.jobs.crashes is 'How often a worker process died while it ran this job, or may have.';
comment on column pgqueue_bi.jobs.created_at is 'When it was enqueued.';
comment on column pgqueue_bi.jobs.run_at is 'When it is or became due.';
comment on column pgqueue_bi.jobs.claimed_at is 'When its last attempt was claimed.';
comment on column pgqueue_bi.jobs.finished_at is 'When it completed, was cancelled or died.';
comment on column pgqueue_bi.jobs.worker_id is 'The worker of the last attempt.';
comment on column pgqueue_bi.jobs.reason is 'Why it was cancelled or died; of a completed one, why its result was not kept.';
