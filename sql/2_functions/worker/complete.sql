-- Ends attempts as completed. Called by workers, also as the last statement of a transactional task.
-- Returns the ids that were accepted; the others' leases were lost and nothing was changed for them.
-- Locks: the jobs' rows of running_jobs, in the order in which they lie, as rescue does. Index: running_jobs_one_claim_a_job.
--
-- Hazard: `delete ... using unnest(...)` lets the planner begin with running_jobs when that was analyzed while empty, and
-- compare each of its rows with each pair: 300 ms instead of 7. A lateral look-up with a limit cannot be turned round.
create function pgqueue.complete(ids bigint[], leases bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    today constant date := pgqueue.history_day('finished_jobs');
    held_keys jsonb;
    accepted bigint[];
begin
    if cardinality(ids) <> cardinality(leases) then
        perform pgqueue.reject_lengths('ids, leases', array[cardinality(ids), cardinality(leases)]);
    end if;
    with ended as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from unnest(complete.ids, complete.leases) as e (id, lease)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id and h.lease = e.lease limit 1) as held))
        returning r.id, r.worker_id, r.run_at, r.created_at, r.claimed_at, r.lane, r.attempt, r.max_attempts, r.crashes,
                  r.queue, r.task, r.args, r.unique_key, r.options
    ), history as (
        insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane, attempt,
                                           max_attempts, crashes, queue, task, state, args, unique_key, options)
        select e.id, e.worker_id, e.run_at, e.created_at, e.claimed_at, clock_timestamp(), today, e.lane, e.attempt,
               e.max_attempts, e.crashes, e.queue, e.task, 'completed', e.args, e.unique_key, e.options
          from ended as e
    )
    select coalesce(array_agg(e.id), '{}'), jsonb_agg(jsonb_build_array(e.task, e.unique_key, e.id))
               filter (where e.unique_key is not null)
      into accepted, held_keys from ended as e;
    if held_keys is not null then
        perform pgqueue.free_keys(held_keys);
    end if;
    if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
        perform pgqueue.tell_waiters(accepted);
    end if;
    return accepted;
end $$;
comment on function pgqueue.complete(bigint[], bigint[]) is
'Ends the attempts (ids[i] under leases[i]) as completed. Returns the ids accepted; a lost lease changes nothing.';
