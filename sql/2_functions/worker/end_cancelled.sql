-- Ends attempts as cancelled: somebody asked for it (the reason is theirs), the handler did, or the job had expired.
-- Called by workers. Returns the ids that were accepted; a lost lease changes nothing.
-- Locks: the jobs' rows of running_jobs, in the order in which they lie, as rescue does. Index: running_jobs_one_claim_a_job.
create function pgqueue.end_cancelled(ids bigint[], leases bigint[], reasons text[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    finished_on constant date := pgqueue.history_day('finished_jobs');
    accepted bigint[];
    held_keys jsonb;
    -- a look-up by id and lease, not a join: see complete
    reason_of constant jsonb := coalesce(
        (select jsonb_object_agg(concat(e.id, ' ', e.lease), e.reason order by e.n)
           from unnest(ids, leases, reasons) with ordinality as e (id, lease, reason, n)), '{}');
begin
    if cardinality(ids) <> cardinality(leases) or cardinality(ids) <> cardinality(reasons) then
        perform pgqueue.reject_lengths('ids, leases, reasons', array[cardinality(ids), cardinality(leases), cardinality(reasons)]);
    end if;
    with ended as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from unnest(end_cancelled.ids, end_cancelled.leases) as e (id, lease)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id and h.lease = e.lease limit 1) as held))
        returning r.id, r.worker_id, r.lease, r.run_at, r.created_at, r.claimed_at, r.lane, r.attempt, r.max_attempts,
                  r.crashes, r.queue, r.task, r.args, r.unique_key, r.options
    ), answered as (
        delete from pgqueue.cancel_requests as c where c.job_id in (select e.id from ended as e)
        returning c.job_id, c.reason
    ), history as (
        insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane, attempt,
                                           max_attempts, crashes, queue, task, state, args, unique_key, options, reason)
        select e.id, e.worker_id, e.run_at, e.created_at, e.claimed_at, clock_timestamp(), finished_on, e.lane, e.attempt,
               e.max_attempts, e.crashes, e.queue, e.task, 'cancelled', e.args, e.unique_key, e.options,
               coalesce(reason_of ->> concat(e.id, ' ', e.lease), a.reason, 'cancelled')
          from ended as e left join answered as a on a.job_id = e.id
    )
    select coalesce(array_agg(e.id), '{}'), jsonb_agg(jsonb_build_array(e.task, e.unique_key, e.id))
               filter (where e.unique_key is not null)
      into accepted, held_keys from ended as e;
    if held_keys is not null then
        perform pgqueue.free_keys(held_keys, with_periods => true);
    end if;
    if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
        perform pgqueue.tell_waiters(accepted);
    end if;
    return accepted;
end $$;
comment on function pgqueue.end_cancelled(bigint[], bigint[], text[]) is
'Ends attempts as cancelled; reasons[i] null: the reason of the request. Returns the ids accepted.';

-- Ends those attempts as cancelled that were not to start any more: options.expires_at, or expires_in seconds after the
-- enqueue, has passed. Called by workers before they start such a job; the clock is the database's.
-- Returns the ids that were ended. Locks: as end_cancelled.
create function pgqueue.end_expired(ids bigint[], leases bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    late record;
begin
    if cardinality(end_expired.ids) <> cardinality(end_expired.leases) then
        perform pgqueue.reject_lengths('ids, leases', array[cardinality(end_expired.ids), cardinality(end_expired.leases)]);
    end if;
    select coalesce(array_agg(r.id), '{}') as ids, coalesce(array_agg(r.lease), '{}') as leases into late
      from unnest(end_expired.ids, end_expired.leases) as e (id, lease)
           join pgqueue.running_jobs as r on r.id = e.id and r.lease = e.lease
     where least((r.options ->> 'expires_at')::timestamptz,
                 r.created_at + make_interval(secs => (r.options ->> 'expires_in')::double precision)) < clock_timestamp();
    return pgqueue.end_cancelled(late.ids, late.leases, array_fill('expired'::text, array[cardinality(late.ids)]));
end $$;
comment on function pgqueue.end_expired(bigint[], bigint[]) is
'Ends attempts whose job has expired as cancelled, reason expired. Returns the ids that were.';

-- The running jobs of a worker that somebody has asked to cancel. Called by the worker when it is told. Locks: none.
-- Index: running_jobs_one_claim_a_job. Reads cancel_requests whole: it is nearly always empty.
create function pgqueue.cancel_requests(worker_ids bigint[])
returns table (worker_id bigint, job_id bigint, lease bigint) language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
begin
    return query
    select c.worker_id, c.job_id, c.lease from pgqueue.cancel_requests as c
     where c.worker_id = any (cancel_requests.worker_ids);
end $$;
comment on function pgqueue.cancel_requests(bigint[]) is 'What the workers have been asked to cancel, and have not ended yet.';
