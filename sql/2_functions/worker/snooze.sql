-- Puts running jobs off, the attempt given back. Called by workers: a handler's Snooze, a task that the app lacks.
-- Returns the ids that were accepted; a lost lease changes nothing.
-- Locks: the jobs' rows of running_jobs, in the order in which they lie, as rescue does. Index: running_jobs_one_claim_a_job.
create function pgqueue.snooze(ids bigint[], leases bigint[], delays double precision[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    accepted bigint[];
    first_due timestamptz;
    -- a look-up by id and lease, not a join: see complete
    delay_of constant jsonb := coalesce(
        (select jsonb_object_agg(concat(e.id, ' ', e.lease), e.delay order by e.n)
           from unnest(ids, leases, delays) with ordinality as e (id, lease, delay, n)), '{}');
begin
    if cardinality(ids) <> cardinality(leases) or cardinality(ids) <> cardinality(delays) then
        perform pgqueue.reject_lengths('ids, leases, delays', array[cardinality(ids), cardinality(leases), cardinality(delays)]);
    end if;
    with ended as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from unnest(snooze.ids, snooze.leases) as e (id, lease)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id and h.lease = e.lease limit 1) as held))
        returning r.id, r.created_at, r.lane, r.attempt, r.max_attempts, r.crashes, r.queue, r.task, r.args,
                  r.unique_key, r.options, (delay_of ->> concat(r.id, ' ', r.lease))::double precision as delay
    ), put_off as (
        insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                            args, unique_key, options)
        -- never for the past (promotion relies on it), and no delay can stop an ending
        select e.id, clock_timestamp() + make_interval(secs => greatest(0, least(coalesce(e.delay, 0), 315360000))),
               e.created_at, e.lane | 1, e.attempt - 1, e.max_attempts, e.crashes, e.queue, e.task, e.args, e.unique_key, e.options
          from ended as e
        returning run_at
    )
    select coalesce(array_agg(e.id), '{}'), (select min(p.run_at) from put_off as p) into accepted, first_due from ended as e;
    if first_due is not null then
        perform pgqueue.wake_leader(first_due);
    end if;
    if exists (select from pgqueue.cancel_requests) then
        perform pgqueue.cancel_as_requested(accepted);
    end if;
    return accepted;
end $$;
comment on function pgqueue.snooze(bigint[], bigint[], double precision[]) is
'Puts running jobs off by delays[i] seconds without using up the attempt. Returns the ids accepted.';
