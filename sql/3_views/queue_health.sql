-- The state of each queue: what upkeep/count_depths.sql has counted, and the last five minutes that were rolled up.
create view pgqueue_bi.queue_health as
select n.queue::text as queue,
       coalesce(q.paused_at is not null and coalesce(q.resumes_at > clock_timestamp(), true), false) as is_paused,
       q.paused_at, q.resumes_at,
       coalesce(d.ready, 0)::bigint as ready, coalesce(d.scheduled, 0)::bigint as scheduled,
       coalesce(d.blocked, 0)::bigint as blocked, coalesce(d.running, 0)::bigint as running, coalesce(d.dead, 0)::bigint as dead,
       d.oldest_ready_at,
       case when d.oldest_ready_at is not null
            then greatest(0, date_part('epoch', clock_timestamp() - d.oldest_ready_at)) end as oldest_ready_seconds,
       d.oldest_claimed_at,
       case when d.oldest_claimed_at is not null
            then greatest(0, date_part('epoch', clock_timestamp() - d.oldest_claimed_at)) end as oldest_running_seconds,
       coalesce(r.completed, 0)::double precision / 5 as completed_per_minute,
       coalesce(r.failed, 0)::double precision / 5 as failed_per_minute,
       r.failed::double precision / nullif(r.completed + r.failed, 0)::double precision as failure_ratio,
       coalesce(w.workers, 0)::bigint as workers, coalesce(w.slots, 0)::bigint as slots,
       q.max_depth, q.max_oldest as max_oldest_seconds, nullif(c.counted_at, '-infinity') as counted_at,
       nullif(p.rolled_up_to, '-infinity') as rolled_up_at, q.max_failure_ratio, q.tolerated_dead
  from (select d.queue from pgqueue.depths as d
        union select q.name from pgqueue.queues as q
        union select s.queue from pgqueue.workers as w cross join unnest(w.queues) as s (queue)
        union select r.queue from pgqueue.rollups as r where r.period = 'last_hour') as n
 cross join pgqueue.depth_count as c
 cross join pgqueue.rollup_progress as p
  left join pgqueue.queues as q on q.name = n.queue
  left join (select d.queue, sum(d.ready) as ready, sum(d.scheduled) as scheduled, sum(d.blocked) as blocked,
                    sum(d.running) as running, sum(d.dead) as dead, min(d.oldest_ready_at) as oldest_ready_at,
                    min(d.oldest_claimed_at) as oldest_claimed_at
               from pgqueue.depths as d group by d.queue) as d on d.queue = n.queue
  left join (select r.queue, sum(r.completed) as completed, sum(r.failed) as failed
               from pgqueue.rollups as r
              where r.period = 'minute'  -- bounded at both ends, or the planner expects a third of all minutes
                and r.bucket_at >= (select l.rolled_up_to - interval '5 minutes' from pgqueue.rollup_progress as l)
                and r.bucket_at < (select l.rolled_up_to from pgqueue.rollup_progress as l)
              group by r.queue) as r on r.queue = n.queue
  left join (select s.queue, count(*) as workers, sum(least(w.concurrency, q.worker_limit)) as slots
               from pgqueue.workers as w
               join pgqueue.heartbeats as h on h.worker_id = w.id and h.beat_at > clock_timestamp() - w.lease
              cross join unnest(w.queues) as s (queue)
               left join pgqueue.queues as q on q.name = s.queue
              group by s.queue) as w on w.queue = n.queue;

comment on view   pgqueue_bi.queue_health is 'The state of each queue: its jobs as counted at counted_at, what became of jobs in the five minutes before rolled_up_at, and its workers now.';
comment on column pgqueue_bi.queue_health.queue is 'The queue.';
comment on column pgqueue_bi.queue_health.is_paused is 'Whether no job of it is claimed now.';
comment on column pgqueue_bi.queue_health.paused_at is 'Since when it is paused; null: it is not.';
comment on column pgqueue_bi.queue_health.resumes_at is 'When it goes on by itself; null: when somebody resumes it.';
comment on column pgqueue_bi.queue_health.ready is 'Jobs that may be claimed.';
comment on column pgqueue_bi.queue_health.scheduled is 'Jobs that wait for their time, retries among them.';
comment on column pgqueue_bi.queue_health.blocked is 'Jobs that wait for another one to end.';
comment on column pgqueue_bi.queue_health.running is 'Jobs in the hands of a worker.';
comment on column pgqueue_bi.queue_health.dead is 'Dead letters.';
comment on column pgqueue_bi.queue_health.oldest_ready_at is 'When the ready job became due that has waited longest; null: none is ready.';
comment on column pgqueue_bi.queue_health.oldest_ready_seconds is 'Seconds since then.';
comment on column pgqueue_bi.queue_health.oldest_claimed_at is 'When the running job was claimed that has run longest; null: none runs.';
comment on column pgqueue_bi.queue_health.oldest_running_seconds is 'Seconds since then.';
comment on column pgqueue_bi.queue_health.completed_per_minute is 'Jobs that completed, a minute, over the last five minutes that were rolled up.';
comment on column pgqueue_bi.queue_health.failed_per_minute is 'Attempts that failed or crashed, a minute, over the same time.';
comment on column pgqueue_bi.queue_health.failure_ratio is 'The share of failed among the attempts that completed or failed in the same time, 0 to 1; null: there were none.';
comment on column pgqueue_bi.queue_health.workers is 'Workers that serve the queue and whose heartbeat is within their lease.';
comment on column pgqueue_bi.queue_health.slots is 'How many jobs of the queue these can run at once.';
comment on column pgqueue_bi.queue_health.max_depth is 'Ready jobs above which the queue counts as unhealthy; null: no threshold.';
comment on column pgqueue_bi.queue_health.max_oldest_seconds is 'Seconds of oldest_ready_seconds above which the queue counts as unhealthy; null: no threshold.';
comment on column pgqueue_bi.queue_health.counted_at is 'When its jobs were counted: at most 10 seconds ago, or longer when nothing has changed since, or when counting takes over half a second; null: never.';
comment on column pgqueue_bi.queue_health.rolled_up_at is 'The end of the last minute that was rolled up; null: none was.';
comment on column pgqueue_bi.queue_health.max_failure_ratio is 'The failure_ratio, 0 to 1, above which the queue counts as unhealthy, from 10 attempts in the five minutes on; null: no threshold.';
comment on column pgqueue_bi.queue_health.tolerated_dead is 'Dead letters above which the queue counts as unhealthy; null: no threshold.';
