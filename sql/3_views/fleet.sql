-- Who looks after the whole, and how fresh its figures are.
create view pgqueue_bi.fleet as
select nullif(l.led_at, '-infinity') as led_at,
       case when isfinite(l.led_at)
            then greatest(0, date_part('epoch', clock_timestamp() - l.led_at)) end as leader_seconds,
       nullif(c.counted_at, '-infinity') as counted_at, nullif(p.rolled_up_to, '-infinity') as rolled_up_at,
       case when isfinite(p.rolled_up_to)
            then greatest(0, date_part('epoch', clock_timestamp() - p.rolled_up_to)) end as figures_seconds,
       w.workers, w.slots
  from pgqueue.leadership as l
 cross join pgqueue.depth_count as c
 cross join pgqueue.rollup_progress as p
 cross join (select count(*) as workers, coalesce(sum(w.concurrency), 0)::bigint as slots
               from pgqueue.workers as w
               join pgqueue.heartbeats as h on h.worker_id = w.id and h.beat_at > clock_timestamp() - w.lease) as w;

comment on view   pgqueue_bi.fleet is 'All workers together, and what their leader does: one row.';
comment on column pgqueue_bi.fleet.led_at is 'When a round of upkeep was last led, noted every few seconds; null: never.';
comment on column pgqueue_bi.fleet.leader_seconds is 'Seconds since then.';
comment on column pgqueue_bi.fleet.counted_at is 'When jobs were counted last: see queue_health; null: never.';
comment on column pgqueue_bi.fleet.rolled_up_at is 'The end of the last minute that was rolled up; null: none was.';
comment on column pgqueue_bi.fleet.figures_seconds is 'Seconds since then: somewhat over 60 where a leader does its work.';
comment on column pgqueue_bi.fleet.workers is 'Workers whose heartbeat is within their lease.';
comment on column pgqueue_bi.fleet.slots is 'How many jobs these can run at once.';
