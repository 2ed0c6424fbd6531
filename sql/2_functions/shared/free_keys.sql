-- Frees the unique keys of jobs that have ended, and gives the turn to the jobs that waited for their end.
-- Called by the endings, in their transaction, for what had a key; held: an array of [task, key, id].
-- Locks: the keys' rows, skipping those that a producer holds: an ending never waits for one. A key left behind so has a
-- holder that has ended, and is free for whoever comes (take_unique_key). Index: unique_keys_one_job_a_key.
create function pgqueue.free_keys(held jsonb, with_periods boolean default false)
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
declare
    kinds constant text[] := case when with_periods then '{unique, period}' else '{unique}' end;
    freed bigint[];
begin
    with gone as (
        delete from pgqueue.unique_keys as k
         where k.ctid = any (array(
             select own.ctid from jsonb_array_elements(held) as h (job)
              cross join lateral (select u.ctid from pgqueue.unique_keys as u
                                   where u.kind = any (kinds) and u.task = h.job ->> 0 and u.key = h.job ->> 1
                                     and u.job_id = (h.job ->> 2)::bigint
                                   limit 1 for update skip locked) as own))
        returning k.job_id
    )
    select array_agg(g.job_id) into freed from gone as g;
    if exists (select from pgqueue.blocked_jobs as b where b.after_id = any (freed)) then
        perform pgqueue.unblock(freed);
    end if;
end $$;
comment on function pgqueue.free_keys(jsonb, boolean) is
'Private. Frees the unique keys that these jobs still hold, with_periods those for a period as well (of jobs that were cancelled), and unblocks what waited for them.';
