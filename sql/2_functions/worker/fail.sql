-- Ends attempts as failed: back to scheduled after the delay, or to dead_letters when the delay is null or no attempt
-- is left. Called by workers. Returns the ids that were accepted; a lost lease changes nothing.
-- Locks: the jobs' rows of running_jobs, in the order in which they lie, as rescue does. Index: running_jobs_one_claim_a_job, job_failures_by_job.
create function pgqueue.fail(failures jsonb)
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    finished_on constant date := pgqueue.history_day('job_failures');
    accepted bigint[];
    held_keys jsonb;
    first_due timestamptz;
    -- a look-up by id and lease, not a join: see complete
    failure_of jsonb;
begin
    if not pgqueue.are_claims(failures) then
        perform pgqueue.reject_claims('failures', failures);
    end if;
    failure_of := coalesce(
        (select jsonb_object_agg(concat((f.failure ->> 'id')::numeric::bigint, ' ', (f.failure ->> 'lease')::numeric::bigint), f.failure)
           from jsonb_array_elements(failures) as f (failure)), '{}');
    with gone as (
        delete from pgqueue.running_jobs as r
         where r.ctid = any (array(
             select held.ctid from jsonb_to_recordset(fail.failures) as e (id numeric, lease numeric)
              cross join lateral (select h.ctid from pgqueue.running_jobs as h
                                   where h.id = e.id::bigint and h.lease = e.lease::bigint limit 1) as held))
        returning r.id, r.worker_id, r.run_at, r.created_at, r.claimed_at, r.lane, r.attempt, r.max_attempts, r.crashes,
                  r.queue, r.task, r.args, r.unique_key, r.options, clock_timestamp() as failed_at,
                  failure_of -> concat(r.id, ' ', r.lease) as failure
    ), ended as (
        select g.*, coalesce(g.failure ->> 'error', 'unknown') as error, coalesce(g.failure ->> 'message', '') as message,
               g.failure ->> 'traceback' as traceback, g.failure ->> 'fingerprint' as fingerprint,
               (g.failure ->> 'delay')::double precision as delay, coalesce(g.failure ->> 'reason', 'exhausted') as reason,
               g.failure ->> 'delay' is null or g.attempt >= g.max_attempts as is_dead
          from gone as g
    ), noted as (
        insert into pgqueue.job_failures (job_id, worker_id, failed_at, day, attempt, queue, task, error, message,
                                          traceback, fingerprint, dead_reason)
        select e.id, e.worker_id, e.failed_at, finished_on, e.attempt, e.queue, e.task, e.error, e.message, e.traceback,
               e.fingerprint, case when e.is_dead then e.reason end
          from ended as e
    ), retried as (
        insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                            args, unique_key, options)
        -- never for the past (promotion relies on it), and no delay can stop an ending
        select e.id, clock_timestamp() + make_interval(secs => greatest(0, least(e.delay, 315360000))),
               e.created_at, e.lane | 1, e.attempt, e.max_attempts, e.crashes, e.queue, e.task, e.args, e.unique_key, e.options
          from ended as e where not e.is_dead
        returning run_at
    ), died as (
        insert into pgqueue.dead_letters (id, worker_id, run_at, created_at, claimed_at, died_at, lane, attempt,
                                          max_attempts, crashes, queue, task, args, unique_key, options, reason, error,
                                          message, errors, fingerprint)
        select e.id, e.worker_id, e.run_at, e.created_at, e.claimed_at, e.failed_at, e.lane | 1, e.attempt,
               e.max_attempts, e.crashes, e.queue, e.task, e.args, e.unique_key, e.options, e.reason, e.error, e.message,
               pgqueue.earlier_failures(e.id) || jsonb_build_object(
                   'attempt', e.attempt, 'failed_at', e.failed_at, 'error', e.error, 'message', e.message,
                   'traceback', e.traceback), e.fingerprint
          from ended as e where e.is_dead
    )
    select coalesce(array_agg(e.id), '{}'), jsonb_agg(jsonb_build_array(e.task, e.unique_key, e.id))
               filter (where e.is_dead and e.unique_key is not null), (select min(r.run_at) from retried as r)
      into accepted, held_keys, first_due from ended as e;
    if first_due is not null then
        perform pgqueue.wake_leader(first_due);
    end if;
    if held_keys is not null then
        perform pgqueue.free_keys(held_keys);
    end if;
    if exists (select from pgqueue.cancel_requests) then
        perform pgqueue.cancel_as_requested(accepted);
    end if;
    if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
        perform pgqueue.tell_waiters(accepted);
    end if;
    return accepted;
end $$;
comment on function pgqueue.fail(jsonb) is
'Ends attempts as failed. failures: an array of {id, lease, error, message, traceback, fingerprint, delay, reason}; delay in seconds, null: dead letter with that reason. Returns the ids accepted.';
