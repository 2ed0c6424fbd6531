-- Whether all is well: a row a check. Called z_, because it reads the view queue_health and files run in the order of ls.
--
-- What upkeep has counted is as old as upkeep: when no worker is alive nobody counts. Then, and only then, the first job of each
-- lane is looked at, and the first of the scheduled ones.
create view pgqueue_bi.health as
with recursive queue as materialized (
    select h.queue, h.is_paused, h.ready, h.dead, h.oldest_ready_seconds, h.failure_ratio, h.workers,
           round(5 * (h.completed_per_minute + h.failed_per_minute))::bigint as attempts,
           h.max_depth, h.max_oldest_seconds, h.max_failure_ratio, h.tolerated_dead
      from pgqueue_bi.queue_health as h
), fleet as materialized (
    select count(*) as workers, count(*) filter (where h.beat_at > clock_timestamp() - w.lease) as alive,
           date_part('epoch', clock_timestamp() - min(w.started_at)) as seconds,
           greatest(30, date_part('epoch', max(w.lease))) as patience
      from pgqueue.workers as w left join pgqueue.heartbeats as h on h.worker_id = w.id
), leader as materialized (
    -- a fleet that has just been started has had no time to lead
    select case when f.workers > 0
                then greatest(0, least(date_part('epoch', clock_timestamp() - nullif(l.led_at, '-infinity')), f.seconds))
           end as seconds, f.workers, f.patience, f.seconds as fleet_seconds
      from pgqueue.leadership as l cross join fleet as f
), head (queue, lane, run_at) as (
    (select r.queue, r.lane, r.run_at from pgqueue.ready_jobs as r
      where (select f.alive from fleet as f) = 0 order by r.queue, r.lane, r.position limit 1)
    union all
    select n.queue, n.lane, n.run_at
      from head
     cross join lateral (select r.queue, r.lane, r.run_at from pgqueue.ready_jobs as r
                          where (r.queue, r.lane) > (head.queue, head.lane)
                          order by r.queue, r.lane, r.position limit 1) as n
), due as materialized (
    select s.queue, s.run_at from pgqueue.scheduled_jobs as s
     where (select f.alive from fleet as f) = 0 order by s.run_at limit 1
), line as (
    select n.queue, max(n.seconds) as seconds
      from (select q.queue, coalesce(q.oldest_ready_seconds, 0) as seconds from queue as q
            union all
            select h.queue, date_part('epoch', clock_timestamp() - h.run_at) from head as h
            union all
            select d.queue, date_part('epoch', clock_timestamp() - d.run_at) from due as d where d.run_at < clock_timestamp()) as n
     group by n.queue
), served as (
    select l.queue, coalesce(q.is_paused, false) as is_paused, coalesce(q.workers, 0) as workers,
           case when coalesce(q.is_paused or q.workers > 0, false) then 0 else greatest(0, l.seconds) end as seconds
      from line as l left join queue as q on q.queue = l.queue
), late as materialized (
    select s.name, s.problem,
           case when s.due_at = 'infinity' then 0
                else greatest(0, date_part('epoch', clock_timestamp() - case when isfinite(s.due_at) then s.due_at else s.changed_at end))
           end as seconds
      from pgqueue.schedules as s
     where s.paused_at is null and (s.due_at < clock_timestamp() or s.problem is not null)
), latest as (
    select coalesce(max(l.seconds), 0) as seconds, count(*) filter (where l.problem is not null) as broken,
           (array_agg(l.name order by l.problem is null, l.seconds desc))[1] as name,
           (array_agg(l.problem order by l.problem is null, l.seconds desc))[1] as problem
      from late as l
)
select null::text as queue, 'leader'::text as check_name, l.seconds::double precision as value,
       l.patience::double precision as threshold, coalesce(l.seconds <= l.patience, true) as is_healthy,
       case when l.workers = 0 then 'no worker is registered'
            when l.seconds <= l.patience then 'upkeep is led'
            else format('nobody has led upkeep for %s s, though workers are registered', round(l.seconds)) end as detail
  from leader as l
union all
select null, 'figures', f.seconds, 300, coalesce(f.seconds <= 300, true),
       case when f.seconds is null then 'nobody leads upkeep, so no figures are kept'
            when f.seconds <= 300 then format('the last minute that was rolled up ended %s s ago', round(f.seconds))
            else format('nothing has been rolled up for %s s: a transaction that ends jobs may have been open since', round(f.seconds)) end
  from (select case when l.seconds <= l.patience
                    then greatest(0, least(date_part('epoch', clock_timestamp() - nullif(p.rolled_up_to, '-infinity')), l.fleet_seconds))
               end as seconds
          from leader as l cross join pgqueue.rollup_progress as p) as f
union all
select null, 'schedules', s.seconds, 60, s.seconds <= 60 and s.broken = 0,
       case when s.broken > 0 then format('the schedule %s cannot run: %s', s.name, s.problem)
            when s.seconds > 60 then format('the schedule %s has been due for %s s', s.name, round(s.seconds))
            else 'no schedule is late' end
  from latest as s
union all
select s.queue::text, 'workers', s.seconds, 60, s.seconds <= 60,
       case when s.is_paused then 'the queue is paused'
            when s.workers > 0 then format('workers that serve the queue: %s', s.workers)
            when s.seconds = 0 then 'no worker serves the queue, and nothing waits in it'
            else format('jobs have waited for %s s, and no worker serves the queue', round(s.seconds)) end
  from served as s
union all
select q.queue::text, 'depth', q.ready, q.max_depth, q.ready <= q.max_depth,
       format('ready jobs: %s, allowed: %s', q.ready, q.max_depth)
  from queue as q where q.max_depth is not null
union all
select q.queue::text, 'oldest_age', coalesce(q.oldest_ready_seconds, 0), q.max_oldest_seconds,
       coalesce(q.oldest_ready_seconds <= q.max_oldest_seconds, true),
       case when q.oldest_ready_seconds is null then 'no job is ready'
            else format('the oldest ready job has waited for %s s, allowed: %s s', round(q.oldest_ready_seconds), q.max_oldest_seconds) end
  from queue as q where q.max_oldest_seconds is not null
union all
select q.queue::text, 'failure_ratio', q.failure_ratio, q.max_failure_ratio,
       coalesce(q.attempts < 10 or q.failure_ratio <= q.max_failure_ratio, true),
       case when q.attempts < 10 then format('attempts within five minutes: %s, too few to judge by', q.attempts)
            else format('of %s attempts within five minutes %s%% have failed, allowed: %s%%', q.attempts,
                        round((100 * q.failure_ratio)::numeric, 1), round((100 * q.max_failure_ratio)::numeric, 1)) end
  from queue as q where q.max_failure_ratio is not null
union all
select q.queue::text, 'dead', q.dead, q.tolerated_dead, q.dead <= q.tolerated_dead,
       format('dead letters: %s, allowed: %s', q.dead, q.tolerated_dead)
  from queue as q where q.tolerated_dead is not null;

comment on view   pgqueue_bi.health is 'Whether all is well: a row a check. Of each queue: workers, and depth, oldest_age, failure_ratio and dead where a threshold is set; of the whole: leader, figures, schedules.';
comment on column pgqueue_bi.health.queue is 'The queue that the check is about; null: it is about the whole.';
comment on column pgqueue_bi.health.check_name is 'depth (ready jobs), oldest_age (seconds that the oldest of them has waited), failure_ratio (0 to 1, of the attempts of five minutes), dead (dead letters), workers (seconds that jobs have waited while no worker serves their queue); leader (seconds since upkeep was led, while workers are registered), figures (seconds since the last minute that was rolled up), schedules (seconds by which one is late).';
comment on column pgqueue_bi.health.value is 'What was found, in the unit of the check; null: there is nothing to judge.';
comment on column pgqueue_bi.health.threshold is 'What the value must not exceed.';
comment on column pgqueue_bi.health.is_healthy is 'Whether it does not. A failure ratio counts from 10 attempts on; a schedule that cannot run is not healthy.';
comment on column pgqueue_bi.health.detail is 'The same, as a sentence for a person.';
