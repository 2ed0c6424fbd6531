-- Ends attempts as completed, each with what its handler returned. Called by workers for tasks that keep results, also as
-- the last statement of a transactional task. Returns the ids that were accepted; a lost lease changes nothing.
-- Locks: the jobs' rows of running_jobs, in the order in which they lie, as rescue does. Index: running_jobs_one_claim_a_job.
--
-- Not a default of complete: that one is what a drain is made of, and carries no JSON.
create function pgqueue.complete_with_results(completions jsonb)
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    today constant date := pgqueue.history_day('finished_jobs');
    accepted bigint[];
    held_keys jsonb;
    -- a look-up by id and lease, not a join: see complete
    completion_of jsonb;
begin
    if not pgqueue.are_claims(completions) then
        perform pgqueue.reject_claims('completions', completions);
    end if;
    completion_of := coalesce(
        (select jsonb_object_agg(concat((c.completion ->> 'id')::numeric::bigint, ' ', (c.completion ->> 'lease')::numeric::bigint), c.completion)
           from jsonb_array_elements(completions) as c (completion)), '{}');
    with gone as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from jsonb_to_recordset(complete_with_results.completions) as e (id numeric, lease numeric)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id::bigint and h.lease = e.lease::bigint limit 1) as held))
        returning r.id, r.worker_id, r.run_at, r.created_at, r.claimed_at, r.lane, r.attempt, r.max_attempts, r.crashes,
                  r.queue, r.task, r.args, r.unique_key, r.options, completion_of -> concat(r.id, ' ', r.lease) as completion
    ), history as (
        insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane, attempt,
                                           max_attempts, crashes, queue, task, state, args, unique_key, options, reason,
                                           result)
        select g.id, g.worker_id, g.run_at, g.created_at, g.claimed_at, clock_timestamp(), today, g.lane, g.attempt,
               g.max_attempts, g.crashes, g.queue, g.task, 'completed', g.args, g.unique_key, g.options,
               g.completion ->> 'reason', g.completion -> 'result'
          from gone as g
    )
    select coalesce(array_agg(g.id), '{}'), jsonb_agg(jsonb_build_array(g.task, g.unique_key, g.id))
               filter (where g.unique_key is not null)
      into accepted, held_keys from gone as g;
    if held_keys is not null then
        perform pgqueue.free_keys(held_keys);
    end if;
    if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
        perform pgqueue.tell_waiters(accepted);
    end if;
    return accepted;
end $$;
comment on function pgqueue.complete_with_results(jsonb) is
'Ends attempts as completed and keeps their results. completions: an array of {id, lease, result, reason}; result: any JSON, missing: none is kept; reason: why it is missing. Returns the ids accepted.';
