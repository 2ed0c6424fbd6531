-- The first job of each lane that has one: who waits, and since when. Called by operators: doctor, which looks for lanes that
-- others keep from being served. Locks: none. Index: ready_jobs_lane, from the floors on: twenty look-ups a queue.
create function pgqueue.lane_heads()
returns table (queue text, priority smallint, run_at timestamptz, waited_seconds double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    return query
    select f.queue, (c.number / 2)::smallint, head.run_at, extract(epoch from clock_timestamp() - head.run_at)::double precision
      from pgqueue.lane_floors as f
     cross join lateral (select n.floor, n.number - 1 as number from unnest(f.floors) with ordinality as n (floor, number)) as c
     cross join lateral (select r.run_at from pgqueue.ready_jobs as r
                          where r.queue = f.queue and r.lane = c.number and r.position >= c.floor
                          order by r.position limit 1) as head
     order by f.queue, c.number;
end $$;
comment on function pgqueue.lane_heads() is
'The first job of each lane that has one, with its queue and priority, and for how long it has waited. A priority may come twice: what came back is a lane of its own.';
