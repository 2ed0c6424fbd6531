-- What operators have set for queues.
create view pgqueue_bi.queues as
select q.name::text as queue, q.paused_at, q.resumes_at, q.worker_limit, q.max_attempts, q.timeout as timeout_seconds,
       q.target_wait as target_wait_seconds, date_part('epoch', q.keep_completed) as keep_completed_seconds,
       date_part('epoch', q.keep_cancelled) as keep_cancelled_seconds, date_part('epoch', q.keep_dead) as keep_dead_seconds,
       q.max_completed, q.max_cancelled, q.max_dead, q.max_depth, q.max_oldest as max_oldest_seconds,
       q.max_failure_ratio, q.tolerated_dead
  from pgqueue.queues as q;

comment on view   pgqueue_bi.queues is 'What operators have set for queues: a row for each that has, or had, a setting of its own. Null: the default.';
comment on column pgqueue_bi.queues.queue is 'The queue.';
comment on column pgqueue_bi.queues.paused_at is 'Since when no job of it is claimed; null: not paused.';
comment on column pgqueue_bi.queues.resumes_at is 'When it goes on by itself; null: when somebody resumes it.';
comment on column pgqueue_bi.queues.worker_limit is 'How many slots of each worker it may take; null: all of them.';
comment on column pgqueue_bi.queues.max_attempts is 'Attempts that its jobs have when neither their task nor their enqueue says; null: 5.';
comment on column pgqueue_bi.queues.timeout_seconds is 'Seconds that an attempt may take when neither its task nor its enqueue says; null: as long as it takes.';
comment on column pgqueue_bi.queues.target_wait_seconds is 'Seconds that a job should wait at the most, from due to claimed; null: no target.';
comment on column pgqueue_bi.queues.keep_completed_seconds is 'Seconds that completed jobs are kept; 0: not at all; null: 7 days.';
comment on column pgqueue_bi.queues.keep_cancelled_seconds is 'Seconds that cancelled jobs are kept; 0: not at all; null: 7 days.';
comment on column pgqueue_bi.queues.keep_dead_seconds is 'Seconds that dead letters are kept; 0: not at all; null: for ever.';
comment on column pgqueue_bi.queues.max_completed is 'How many completed jobs are kept, the latest; null: any number.';
comment on column pgqueue_bi.queues.max_cancelled is 'How many cancelled jobs are kept, the latest; null: any number.';
comment on column pgqueue_bi.queues.max_dead is 'How many dead letters are kept, the latest; null: any number.';
comment on column pgqueue_bi.queues.max_depth is 'Ready jobs above which the queue is unhealthy; null: any number is healthy.';
comment on column pgqueue_bi.queues.max_oldest_seconds is 'Seconds that the oldest ready job has waited, above which the queue is unhealthy; null: any age is healthy.';
comment on column pgqueue_bi.queues.max_failure_ratio is 'The share of failed among the attempts of five minutes, 0 to 1, above which the queue is unhealthy; null: any is healthy.';
comment on column pgqueue_bi.queues.tolerated_dead is 'Dead letters above which the queue is unhealthy; null: any number is healthy. How many are kept at all is max_dead.';
