-- Says that workers are alive. Called by their supervisor, every 2 s while they hold jobs.
-- Returns the ids that are registered no more: their jobs belong to others now.
-- Locks: the workers' rows of heartbeats and sleepers. Index: heartbeats_one_row_a_worker, sleepers_one_row_a_worker_and_period.
create function pgqueue.heartbeat(worker_ids bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
begin
    perform set_config('synchronous_commit', 'off', true);
    -- Not again within a thirtieth of the lease: under a held snapshot each beat leaves a version behind, and rounds of
    -- upkeep, which beat as well, may come many times a second.
    update pgqueue.heartbeats as h set beat_at = clock_timestamp()
      from pgqueue.workers as w
     where h.worker_id = any (heartbeat.worker_ids) and w.id = h.worker_id
       and h.beat_at < clock_timestamp() - w.lease / 30;
    -- Who sleeps on sleeps in a new period. All of its rows are locked, so that nobody who is being taken off comes back.
    insert into pgqueue.sleepers (queue, period, worker_id, slept_at)
    select asleep.queue, date_bin('10 seconds', clock_timestamp(), '2000-01-01'), asleep.worker_id, clock_timestamp()
      from (select s.queue, s.worker_id, s.slept_at
              from pgqueue.workers as w cross join unnest(w.queues) as q (queue)
                   join pgqueue.sleepers as s on s.queue = q.queue and s.worker_id = w.id
             where w.id = any (heartbeat.worker_ids) and s.period > now() - interval '30 seconds'
               for update of s) as asleep
     group by asleep.queue, asleep.worker_id
    having max(asleep.slept_at) > '-infinity' and max(asleep.slept_at) < clock_timestamp() - interval '10 seconds'
    on conflict (queue, period, worker_id) do update set slept_at = excluded.slept_at;
    return array(select b.id from unnest(heartbeat.worker_ids) as b (id)
                  where not exists (select from pgqueue.workers as w where w.id = b.id));
end $$;
comment on function pgqueue.heartbeat(bigint[]) is
'Beats for the given workers. Returns those that are no longer registered.';
