-- Takes a dead worker's jobs back, and its row away. Called by the worker's supervisor when a child has died (`started`:
-- what it had begun to run and may have died of; `interrupted`: what it had begun and has not died of; `cause`: how it
-- died) and by upkeep for a worker whose heartbeat stands still (null: not known, so all of its jobs may have started).
-- Locks: the worker's row for update (claims of that worker wait or fail), its rows of running_jobs.
-- Scans running_jobs by worker_id without an index: a death is rare, an index would cost every claim.
--
-- What had not started goes back untouched, and so does what was interrupted. What had started has crashed: the attempt
-- stays counted, but the first 3 crashes never use up the last attempt, for they may be another job's fault; from the
-- second start on the job runs apart, where it can kill itself alone. After 3 crashes the attempts decide: a job starts
-- at most max_attempts + 3 times, however it dies. With the option on_crash = dead it does not start a second time.
create function pgqueue.rescue(
    worker_id bigint, started bigint[] default null, interrupted bigint[] default '{}', cause text default null
) returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    finished_on constant date := pgqueue.history_day('job_failures');
    rescued integer;
    lines text[];
    held_keys jsonb;
    ids bigint[];
begin
    perform from pgqueue.workers as w where w.id = rescue.worker_id for update;
    if not found then
        return 0;
    end if;
    delete from pgqueue.workers as w where w.id = rescue.worker_id;
    delete from pgqueue.heartbeats as h where h.worker_id = rescue.worker_id;
    delete from pgqueue.sleepers as s where s.worker_id = rescue.worker_id;
    -- in the order in which endings take them, for an ending of this worker may be under way
    perform from pgqueue.running_jobs as r where r.worker_id = rescue.worker_id order by r.ctid for update;
    with ended as (
        delete from pgqueue.running_jobs as r where r.worker_id = rescue.worker_id
        returning r.id, r.worker_id, r.run_at, r.created_at, r.claimed_at, r.lane, r.attempt, r.max_attempts, r.crashes,
                  r.queue, r.task, r.args, r.unique_key, r.options, clock_timestamp() as failed_at,
                  rescue.started is null or r.id = any (rescue.started) as crashed,
                  coalesce(r.id = any (rescue.interrupted), false) as was_interrupted
    ), judged as (
        select e.*,
               e.crashed and e.crashes >= 3 and e.attempt >= e.max_attempts
               or (e.crashed or e.was_interrupted) and coalesce(e.options ->> 'on_crash' = 'dead', false) as is_dead,
               case when e.crashed and rescue.cause is null
                    then 'the worker process died or lost its lease while it ran this job'
                    when e.crashed then concat('while it ran this job the worker process ', rescue.cause)
                    else concat('the worker process ', coalesce(rescue.cause, 'died'), '; this job is not to blame')
                end as message
          from ended as e
    ), noted as (
        insert into pgqueue.job_failures (job_id, worker_id, failed_at, day, attempt, queue, task, error, message,
                                          fingerprint, dead_reason)
        select j.id, j.worker_id, j.failed_at, finished_on, j.attempt, j.queue, j.task, 'pgqueue.Crashed', j.message,
               'crashed', case when j.is_dead then 'crashed' end
          from judged as j where j.crashed or j.was_interrupted
    ), back as (
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select j.id, j.run_at, j.created_at, j.lane & ~1,
               case when not j.crashed then j.attempt - 1
                    when j.crashes < 3 then least(j.attempt, j.max_attempts - 1)
                    else j.attempt end, j.max_attempts,
               least(j.crashes + j.crashed::integer, 32767), j.queue, j.task, j.args, j.unique_key, j.options
          from judged as j where not j.is_dead order by j.id
    ), died as (
        insert into pgqueue.dead_letters (id, worker_id, run_at, created_at, claimed_at, died_at, lane, attempt,
                                          max_attempts, crashes, queue, task, args, unique_key, options, reason, error,
                                          message, errors, fingerprint)
        select j.id, j.worker_id, j.run_at, j.created_at, j.claimed_at, j.failed_at, j.lane | 1, j.attempt,
               j.max_attempts, least(j.crashes + j.crashed::integer, 32767), j.queue, j.task, j.args, j.unique_key,
               j.options, 'crashed', 'pgqueue.Crashed', j.message,
               pgqueue.earlier_failures(j.id) || jsonb_build_object(
                   'attempt', j.attempt, 'failed_at', j.failed_at, 'error', 'pgqueue.Crashed', 'message', j.message,
                   'traceback', null), 'crashed'
          from judged as j where j.is_dead
    )
    select count(*), array_agg(j.queue) filter (where not j.is_dead),
           jsonb_agg(jsonb_build_array(j.task, j.unique_key, j.id))
               filter (where j.is_dead and j.unique_key is not null), array_agg(j.id)
      into rescued, lines, held_keys, ids from judged as j;
    if held_keys is not null then
        perform pgqueue.free_keys(held_keys);
    end if;
    perform pgqueue.notify_sleepers(l.queue, l.jobs::integer)
       from (select q.queue, count(*) as jobs from unnest(lines) as q (queue) group by q.queue) as l;
    if exists (select from pgqueue.cancel_requests) then
        perform pgqueue.cancel_as_requested(array(
            select c.job_id from pgqueue.cancel_requests as c where c.worker_id = rescue.worker_id));
    end if;
    if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
        perform pgqueue.tell_waiters(ids);
    end if;
    return rescued;
end $$;
comment on function pgqueue.rescue(bigint, bigint[], bigint[], text) is
'Takes the jobs of a worker that has ended or died back, and its row away. `started`: ids of the jobs it had begun and may have died of; {}: none; null: unknown, all. `interrupted`: ids of those it had begun and has not died of. `cause`: how it died ("was killed by SIGSEGV"). Returns how many jobs.';
