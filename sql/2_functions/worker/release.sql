-- Gives running jobs back untouched: to the front of their priority, the attempt given back.
-- Called by workers for what they cannot start or finish before they stop. Returns the ids that were accepted.
-- Locks: the jobs' rows of running_jobs, in the order in which they lie, as rescue does. Index: running_jobs_one_claim_a_job.
create function pgqueue.release(ids bigint[], leases bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    accepted bigint[];
    lines text[];
begin
    if cardinality(ids) <> cardinality(leases) then
        perform pgqueue.reject_lengths('ids, leases', array[cardinality(ids), cardinality(leases)]);
    end if;
    with ended as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from unnest(release.ids, release.leases) as e (id, lease)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id and h.lease = e.lease limit 1) as held))
        returning r.id, r.run_at, r.created_at, r.lane, r.attempt, r.max_attempts, r.crashes, r.queue, r.task, r.args,
                  r.unique_key, r.options
    ), back as (
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select e.id, e.run_at, e.created_at, e.lane & ~1, e.attempt - 1, e.max_attempts, e.crashes, e.queue, e.task,
               e.args, e.unique_key, e.options
          from ended as e order by e.id
    )
    select coalesce(array_agg(e.id), '{}'), array_agg(e.queue) into accepted, lines from ended as e;
    perform pgqueue.notify_sleepers(l.queue, l.jobs::integer)
       from (select q.queue, count(*) as jobs from unnest(lines) as q (queue) group by q.queue) as l;
    if exists (select from pgqueue.cancel_requests) then
        perform pgqueue.cancel_as_requested(accepted);
    end if;
    return accepted;
end $$;
comment on function pgqueue.release(bigint[], bigint[]) is
'Gives running jobs back without using up the attempt; they are served first in their priority. Returns the ids accepted.';
