-- What became of jobs in the last so many seconds, by queue or by queue and task. Called by operators: the command stats.
-- Of minutes up to three hours back, of hours up to 14 days, else of days: the span begins with a whole one, and ends with the
-- last minute that was rolled up. Here, for histograms are merged for it, and views have none.
-- Locks: none. Index: rollups_one_row_a_bucket_and_task.
create function pgqueue.stats(last_seconds double precision default 3600, by_task boolean default false)
returns table (queue text, task text, from_at timestamptz, until_at timestamptz, enqueued bigint, completed bigint,
               cancelled bigint, failed bigint, dead bigint, wait_avg_seconds double precision, wait_p50_seconds double precision,
               wait_p95_seconds double precision, wait_p99_seconds double precision, run_avg_seconds double precision,
               run_p50_seconds double precision, run_p95_seconds double precision, run_p99_seconds double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set timezone = 'UTC' set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
    perform pgqueue.checked_seconds('last_seconds', last_seconds);
    return query
    with span as materialized (
        select s.period, p.rolled_up_to as until_at,
               date_trunc(s.period, p.rolled_up_to - make_interval(secs => stats.last_seconds)) as from_at
          from pgqueue.rollup_progress as p
         cross join (select case when stats.last_seconds <= 10800 then 'minute'
                                 when stats.last_seconds <= 14 * 86400 then 'hour'
                                 else 'day' end) as s (period)
    ), parts as materialized (
        select r.queue, case when stats.by_task then r.task else '' end as task, r.enqueued, r.completed, r.cancelled, r.failed,
               r.dead, r.wait_seconds, r.run_seconds, r.wait_buckets, r.wait_counts, r.run_buckets, r.run_counts
          from pgqueue.rollups as r
         where r.period = (select s.period from span as s) and r.bucket_at >= (select s.from_at from span as s)
           and r.bucket_at < (select s.until_at from span as s)
    ), sums as (
        select p.queue, p.task, sum(p.enqueued)::bigint as enqueued, sum(p.completed)::bigint as completed,
               sum(p.cancelled)::bigint as cancelled, sum(p.failed)::bigint as failed, sum(p.dead)::bigint as dead,
               sum(p.wait_seconds) as wait_seconds, sum(p.run_seconds) as run_seconds
          from parts as p group by p.queue, p.task
    ), waits as (
        select b.queue, b.task, array_agg(b.bucket order by b.bucket) as buckets, array_agg(b.jobs order by b.bucket) as counts
          from (select p.queue, p.task, h.bucket, sum(h.jobs)::bigint as jobs
                  from parts as p cross join unnest(p.wait_buckets, p.wait_counts) as h (bucket, jobs)
                 group by p.queue, p.task, h.bucket) as b
         group by b.queue, b.task
    ), runs as (
        select b.queue, b.task, array_agg(b.bucket order by b.bucket) as buckets, array_agg(b.jobs order by b.bucket) as counts
          from (select p.queue, p.task, h.bucket, sum(h.jobs)::bigint as jobs
                  from parts as p cross join unnest(p.run_buckets, p.run_counts) as h (bucket, jobs)
                 group by p.queue, p.task, h.bucket) as b
         group by b.queue, b.task
    ), shown as (
        select s.*, coalesce(w.buckets, '{}') as wait_buckets, coalesce(w.counts, '{}') as wait_counts,
               coalesce(r.buckets, '{}') as run_buckets, coalesce(r.counts, '{}') as run_counts
          from sums as s
          left join waits as w on w.queue = s.queue and w.task = s.task
          left join runs as r on r.queue = s.queue and r.task = s.task
         where s.enqueued + s.completed + s.cancelled + s.failed > 0
    )
    select s.queue, nullif(s.task, ''), n.from_at, n.until_at, s.enqueued, s.completed, s.cancelled, s.failed, s.dead,
           s.wait_seconds / nullif(s.completed, 0), pgqueue.percentile(s.wait_buckets, s.wait_counts, 0.5),
           pgqueue.percentile(s.wait_buckets, s.wait_counts, 0.95), pgqueue.percentile(s.wait_buckets, s.wait_counts, 0.99),
           s.run_seconds / nullif(s.completed, 0), pgqueue.percentile(s.run_buckets, s.run_counts, 0.5),
           pgqueue.percentile(s.run_buckets, s.run_counts, 0.95), pgqueue.percentile(s.run_buckets, s.run_counts, 0.99)
      from shown as s cross join span as n
     order by s.queue, s.task;
end $$;
comment on function pgqueue.stats(double precision, boolean) is
'What became of jobs in the last so many seconds, by queue, or by queue and task: counts, and how long the completed ones had waited and run; from from_at (a whole minute; over three hours back a whole hour, over 14 days a UTC day) to until_at, the last minute that was rolled up. No row where nothing happened. Percentiles are wrong by a tenth at the most.';
