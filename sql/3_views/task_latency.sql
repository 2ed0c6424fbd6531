-- How long jobs have waited and run in the last hour, rolled up by upkeep/roll_up.sql.
create view pgqueue_bi.task_latency as
select r.queue::text as queue, r.task::text as task, r.bucket_at as from_at, r.bucket_at + interval '1 hour' as until_at, r.completed,
       r.failed, r.failed::double precision / nullif(r.completed + r.failed, 0) as failure_ratio,
       r.wait_seconds / nullif(r.completed, 0) as wait_avg_seconds, r.wait_p50 as wait_p50_seconds,
       r.wait_p95 as wait_p95_seconds, r.wait_p99 as wait_p99_seconds, r.run_seconds / nullif(r.completed, 0) as run_avg_seconds,
       r.run_p50 as run_p50_seconds, r.run_p95 as run_p95_seconds, r.run_p99 as run_p99_seconds
  from pgqueue.rollups as r
 where r.period = 'last_hour' and r.task <> '' and r.completed + r.failed > 0;

comment on view   pgqueue_bi.task_latency is 'How long the jobs of each queue and task have waited and run in the last hour; only those of which one completed or an attempt failed.';
comment on column pgqueue_bi.task_latency.queue is 'The queue.';
comment on column pgqueue_bi.task_latency.task is 'The task.';
comment on column pgqueue_bi.task_latency.from_at is 'When that hour began.';
comment on column pgqueue_bi.task_latency.until_at is 'When it ended: the last minute that was rolled up.';
comment on column pgqueue_bi.task_latency.completed is 'Jobs that completed in it.';
comment on column pgqueue_bi.task_latency.failed is 'Attempts that failed or crashed in it.';
comment on column pgqueue_bi.task_latency.failure_ratio is 'The share of failed among the attempts that completed or failed, 0 to 1; null: there were none.';
comment on column pgqueue_bi.task_latency.wait_avg_seconds is 'Seconds that a completed job had waited on average, from due to the claim of its last attempt.';
comment on column pgqueue_bi.task_latency.wait_p50_seconds is 'Seconds that half of the completed jobs had not waited longer than. Percentiles are wrong by a tenth at the most.';
comment on column pgqueue_bi.task_latency.wait_p95_seconds is 'Seconds that 95% of the completed jobs had not waited longer than.';
comment on column pgqueue_bi.task_latency.wait_p99_seconds is 'Seconds that 99% of the completed jobs had not waited longer than.';
comment on column pgqueue_bi.task_latency.run_avg_seconds is 'Seconds that the last attempt of a completed job took on average, from claim to end.';
comment on column pgqueue_bi.task_latency.run_p50_seconds is 'Seconds that half of those attempts did not exceed.';
comment on column pgqueue_bi.task_latency.run_p95_seconds is 'Seconds that 95% of those attempts did not exceed.';
comment on column pgqueue_bi.task_latency.run_p99_seconds is 'Seconds that 99% of those attempts did not exceed.';
