-- Puts running jobs off, the attempt given back. Called by workers: a handler's Snooze, a task that the app lacks.
-- Returns the ids that were accepted; a lost lease changes nothing.
-- Locks: the jobs' rows of running_jobs, in the order of their ids as rescue does. Index: running_jobs_one_claim_a_job.
create function pgqueue.snooze(ids bigint[], leases bigint[], delays double precision[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    accepted bigint[];
begin
    with ended as (
        delete from pgqueue.running_jobs as r
         using (select u.id, u.lease, u.delay from unnest(snooze.ids, snooze.leases, snooze.delays) as u (id, lease, delay)
                 order by u.id) as s
         where r.id = s.id and r.lease = s.lease
        returning r.id, r.created_at, r.lane, r.attempt, r.max_attempts, r.crashes, r.queue, r.task, r.args,
                  r.unique_key, r.options, s.delay
    ), put_off as (
        insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                            args, unique_key, options)
        select e.id, clock_timestamp() + make_interval(secs => greatest(0, least(e.delay, 315360000))), e.created_at, e.lane | 1, e.attempt - 1,
               e.max_attempts, e.crashes, e.queue, e.task, e.args, e.unique_key, e.options
          from ended as e
    )
    select coalesce(array_agg(e.id), '{}') into accepted from ended as e;
    return accepted;
end $$;
comment on function pgqueue.snooze(bigint[], bigint[], double precision[]) is
'Puts running jobs off by delays[i] seconds without using up the attempt. Returns the ids accepted.';
