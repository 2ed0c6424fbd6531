-- Says that workers are alive. Called by their supervisor, every 2 s while they hold jobs.
-- Returns the ids that are registered no more: their jobs belong to others now.
-- Locks: the workers' rows of heartbeats. Index: heartbeats_one_row_a_worker.
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
    update pgqueue.sleepers as s set slept_at = clock_timestamp()
     where s.worker_id = any (heartbeat.worker_ids) and s.slept_at < clock_timestamp() - interval '10 seconds'
       and s.slept_at > '-infinity';
    return array(select b.id from unnest(heartbeat.worker_ids) as b (id)
                  where not exists (select from pgqueue.workers as w where w.id = b.id));
end $$;
comment on function pgqueue.heartbeat(bigint[]) is
'Beats for the given workers. Returns those that are no longer registered.';
