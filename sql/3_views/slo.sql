-- Target waits against what happened, rolled up by upkeep/roll_up.sql.
create view pgqueue_bi.slo as
select q.name::text as queue, q.target_wait as target_wait_seconds, nullif(p.rolled_up_to, '-infinity') - interval '1 hour' as from_at,
       nullif(p.rolled_up_to, '-infinity') as until_at, coalesce(r.targeted, 0) as completed, coalesce(r.in_target, 0) as in_target,
       r.in_target::double precision / nullif(r.targeted, 0) as in_target_ratio,
       r.wait_p50 as wait_p50_seconds, r.wait_p95 as wait_p95_seconds, r.wait_p99 as wait_p99_seconds,
       d.oldest_ready_at,
       case when d.oldest_ready_at is not null
            then greatest(0, date_part('epoch', clock_timestamp() - d.oldest_ready_at)) end as oldest_ready_seconds,
       coalesce(date_part('epoch', clock_timestamp() - d.oldest_ready_at) > q.target_wait, false) as is_late
  from pgqueue.queues as q
 cross join pgqueue.rollup_progress as p
  left join pgqueue.rollups as r on r.period = 'last_hour' and r.queue = q.name and r.task = ''
  left join (select d.queue, min(d.oldest_ready_at) as oldest_ready_at from pgqueue.depths as d group by d.queue) as d
    on d.queue = q.name
 where q.target_wait is not null;

comment on view   pgqueue_bi.slo is 'The queues that have a target wait, and how long their jobs have waited in the last hour.';
comment on column pgqueue_bi.slo.queue is 'The queue.';
comment on column pgqueue_bi.slo.target_wait_seconds is 'Seconds that a job should wait at the most, from due to claimed.';
comment on column pgqueue_bi.slo.from_at is 'When that hour began.';
comment on column pgqueue_bi.slo.until_at is 'When it ended: the last minute that was rolled up.';
comment on column pgqueue_bi.slo.completed is 'Jobs that completed in it while the queue had a target.';
comment on column pgqueue_bi.slo.in_target is 'Those of them that had not waited longer than the target of then.';
comment on column pgqueue_bi.slo.in_target_ratio is 'The share of these, 0 to 1; null: none completed.';
comment on column pgqueue_bi.slo.wait_p50_seconds is 'Seconds that half of the jobs that completed in that hour had not waited longer than. Percentiles are wrong by a tenth at the most.';
comment on column pgqueue_bi.slo.wait_p95_seconds is 'Seconds that 95% of them had not waited longer than.';
comment on column pgqueue_bi.slo.wait_p99_seconds is 'Seconds that 99% of them had not waited longer than.';
comment on column pgqueue_bi.slo.oldest_ready_at is 'When the ready job became due that waits longest, as last counted; null: none is ready.';
comment on column pgqueue_bi.slo.oldest_ready_seconds is 'Seconds since then.';
comment on column pgqueue_bi.slo.is_late is 'Whether that job has waited longer than the target.';
