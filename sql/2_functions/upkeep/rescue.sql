-- Takes a dead worker's jobs back, and its row away. Called by the worker's supervisor when a child has died
-- (`started`: what it had begun to run) and by upkeep for a worker whose heartbeat stands still (null: not known).
-- Locks: the worker's row for update (claims of that worker wait or fail), its rows of running_jobs.
-- Scans running_jobs by worker_id without an index: a death is rare, an index would cost every claim.
--
-- A job that had not started goes back untouched. One that had started has crashed: the attempt stays counted, but a
-- crash never uses up the last attempt by itself, for it may be another job's fault; after 3 crashes it is dead.
create function pgqueue.rescue(worker_id bigint, started bigint[] default null)
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    finished_on constant date := pgqueue.history_day('job_failures');
    rescued integer;
    lines text[];
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
                  rescue.started is null or r.id = any (rescue.started) as crashed
    ), judged as (
        select e.*, e.crashed and e.crashes + 1 >= 3 as is_dead,
               'the worker process died or lost its lease while it ran this job'::text as message
          from ended as e
    ), noted as (
        insert into pgqueue.job_failures (job_id, worker_id, failed_at, day, attempt, queue, task, error, message,
                                          fingerprint)
        select j.id, j.worker_id, j.failed_at, finished_on, j.attempt, j.queue, j.task, 'pgqueue.Crashed', j.message,
               'crashed'
          from judged as j where j.crashed
    ), back as (
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select j.id, j.run_at, j.created_at, j.lane & ~1,
               case when j.crashed then least(j.attempt, j.max_attempts - 1) else j.attempt - 1 end, j.max_attempts,
               j.crashes + j.crashed::integer, j.queue, j.task, j.args, j.unique_key, j.options
          from judged as j where not j.is_dead order by j.id
    ), died as (
        insert into pgqueue.dead_letters (id, worker_id, run_at, created_at, claimed_at, died_at, lane, attempt,
                                          max_attempts, crashes, queue, task, args, unique_key, options, reason, error,
                                          message, errors)
        select j.id, j.worker_id, j.run_at, j.created_at, j.claimed_at, j.failed_at, j.lane | 1, j.attempt,
               j.max_attempts, j.crashes + 1, j.queue, j.task, j.args, j.unique_key, j.options, 'crashed',
               'pgqueue.Crashed', j.message,
               pgqueue.earlier_failures(j.id) || jsonb_build_object(
                   'attempt', j.attempt, 'failed_at', j.failed_at, 'error', 'pgqueue.Crashed', 'message', j.message,
                   'traceback', null)
          from judged as j where j.is_dead
    ), freed as (
        delete from pgqueue.unique_keys as k
         where k.ctid = any (array(
             select held.ctid from judged as e
              cross join lateral (select h.ctid from pgqueue.unique_keys as h
                                   where h.kind = 'unique' and h.task = e.task and h.key = e.unique_key
                                     and h.job_id = e.id limit 1) as held
              where e.is_dead and e.unique_key is not null))
    )
    select count(*), array_agg(j.queue) filter (where not j.is_dead) into rescued, lines from judged as j;
    perform pgqueue.notify_sleepers(l.queue, l.jobs::integer)
       from (select q.queue, count(*) as jobs from unnest(lines) as q (queue) group by q.queue) as l;
    if exists (select from pgqueue.cancel_requests) then
        perform pgqueue.cancel_as_requested(array(
            select c.job_id from pgqueue.cancel_requests as c where c.worker_id = rescue.worker_id));
    end if;
    return rescued;
end $$;
comment on function pgqueue.rescue(bigint, bigint[]) is
'Takes the jobs of a worker that has ended or died back, and its row away. `started`: ids of the jobs it had begun; {}: none; null: unknown, all. Returns how many jobs.';
