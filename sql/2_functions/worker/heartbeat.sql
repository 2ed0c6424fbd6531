-- Says that workers are alive. Called by their supervisor, every 2 s while they hold jobs.
-- Returns the ids that are registered no more: their jobs belong to others now.
-- Locks: the workers' rows of heartbeats. Index: heartbeats_one_row_a_worker.
create function pgqueue.heartbeat(worker_ids bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    beaten bigint[];
begin
    perform set_config('synchronous_commit', 'off', true);
    with beat as (
        update pgqueue.heartbeats as h set beat_at = clock_timestamp()
         where h.worker_id = any(heartbeat.worker_ids)
        returning h.worker_id
    )
    select coalesce(array_agg(b.worker_id), '{}') into beaten from beat as b;
    update pgqueue.sleepers as s set slept_at = clock_timestamp()
     where s.worker_id = any(beaten) and s.slept_at < clock_timestamp() - interval '10 seconds';
    return array(select w.id from unnest(heartbeat.worker_ids) as w (id) where w.id <> all (beaten));
end $$;
comment on function pgqueue.heartbeat(bigint[]) is
'Beats for the given workers. Returns those that are no longer registered.';
