-- What the deaths of these workers did to the jobs that they were running, wherever those are by now: for the hooks
-- `rescued` and `dead`. Called by a worker that was told of a rescue, if its app has such hooks.
-- Locks: none. Index: job_failures_by_crash, the primary keys, finished_jobs_by_id.
create function pgqueue.crashed_jobs(worker_ids bigint[])
returns table (id bigint, task text, queue text, args text, attempt integer, max_attempts integer, crashes integer,
               error text, message text, dead_reason text)
language plpgsql stable security definer rows 10
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    return query
    select c.job_id, c.task, c.queue, j.args::text, c.attempt::integer, j.max_attempts::integer, j.crashes::integer,
           c.error, c.message, j.dead_reason
      from pgqueue.job_failures as c
     cross join lateral (
        select d.args, d.max_attempts, d.crashes,
               case when d.worker_id = c.worker_id and d.attempt = c.attempt then d.reason end as dead_reason
          from pgqueue.dead_letters as d where d.id = c.job_id
        union all
        select r.args, r.max_attempts, r.crashes, null from pgqueue.ready_jobs as r where r.id = c.job_id
        union all
        select r.args, r.max_attempts, r.crashes, null from pgqueue.running_jobs as r where r.id = c.job_id
        union all
        select s.args, s.max_attempts, s.crashes, null from pgqueue.scheduled_jobs as s where s.id = c.job_id
        union all
        select b.args, b.max_attempts, b.crashes, null from pgqueue.blocked_jobs as b where b.id = c.job_id
        union all
        select f.args, f.max_attempts, f.crashes, null from pgqueue.finished_jobs as f where f.id = c.job_id
     ) as j
     where c.worker_id = any (worker_ids) and c.fingerprint = 'crashed'
     order by c.job_id;
end $$;
comment on function pgqueue.crashed_jobs(bigint[]) is
'The jobs that were running when these workers died, with their args, the error of that attempt, and dead_reason when it made a dead letter of them. For hooks.';
