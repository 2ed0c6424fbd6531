-- What happened in each hour, rolled up by upkeep/roll_up.sql.
create view pgqueue_bi.job_throughput_hourly as
select r.bucket_at, r.queue::text as queue, r.task::text as task, r.enqueued, r.completed, r.cancelled, r.failed, r.dead, r.depth,
       r.wait_seconds / nullif(r.completed, 0) as wait_avg_seconds, r.wait_p50 as wait_p50_seconds,
       r.wait_p95 as wait_p95_seconds, r.wait_p99 as wait_p99_seconds, r.run_seconds / nullif(r.completed, 0) as run_avg_seconds,
       r.run_p50 as run_p50_seconds, r.run_p95 as run_p95_seconds, r.run_p99 as run_p99_seconds
  from pgqueue.rollups as r
 where r.period = 'hour';

comment on view   pgqueue_bi.job_throughput_hourly is 'What happened to the jobs of each queue and task, by hour: the last 100 days; the hour under way grows by the minute. No row where nothing happened and no job was unfinished.';
comment on column pgqueue_bi.job_throughput_hourly.bucket_at is 'When the hour began.';
comment on column pgqueue_bi.job_throughput_hourly.queue is 'The queue.';
comment on column pgqueue_bi.job_throughput_hourly.task is 'The task.';
comment on column pgqueue_bi.job_throughput_hourly.enqueued is 'Jobs that were enqueued, or replayed. Derived from the change of depth and from what ended: right over several minutes, in a single one it may be some seconds off.';
comment on column pgqueue_bi.job_throughput_hourly.completed is 'Jobs that completed.';
comment on column pgqueue_bi.job_throughput_hourly.cancelled is 'Jobs that were cancelled, discarded dead letters among them.';
comment on column pgqueue_bi.job_throughput_hourly.failed is 'Attempts that failed or crashed, those that made a dead letter among them.';
comment on column pgqueue_bi.job_throughput_hourly.dead is 'Jobs that became dead letters.';
comment on column pgqueue_bi.job_throughput_hourly.depth is 'Unfinished jobs at the end, as counted last: ready, scheduled, blocked and running.';
comment on column pgqueue_bi.job_throughput_hourly.wait_avg_seconds is 'Seconds that a completed job had waited on average, from due to the claim of its last attempt.';
comment on column pgqueue_bi.job_throughput_hourly.wait_p50_seconds is 'Seconds that half of the completed jobs had not waited longer than. Percentiles are wrong by a tenth at the most.';
comment on column pgqueue_bi.job_throughput_hourly.wait_p95_seconds is 'Seconds that 95% of the completed jobs had not waited longer than.';
comment on column pgqueue_bi.job_throughput_hourly.wait_p99_seconds is 'Seconds that 99% of the completed jobs had not waited longer than.';
comment on column pgqueue_bi.job_throughput_hourly.run_avg_seconds is 'Seconds that the last attempt of a completed job took on average, from claim to end.';
comment on column pgqueue_bi.job_throughput_hourly.run_p50_seconds is 'Seconds that half of those attempts did not exceed.';
comment on column pgqueue_bi.job_throughput_hourly.run_p95_seconds is 'Seconds that 95% of those attempts did not exceed.';
comment on column pgqueue_bi.job_throughput_hourly.run_p99_seconds is 'Seconds that 99% of those attempts did not exceed.';
