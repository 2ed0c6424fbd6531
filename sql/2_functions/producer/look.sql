-- What has become of jobs: their state, their result, how far they have come; without their args.
-- Called by producers, workers and operators. Locks: none. Index: the primary keys, finished_jobs_by_id for those that are
-- in none of the other tables, job_failures_by_job, job_progress_one_row_a_job, job_reports_by_job.
--
-- One statement, so one snapshot: a job that moves meanwhile is found in exactly one table.
create function pgqueue.look(ids bigint[])
returns table (id bigint, state text, queue text, task text, priority integer, attempt integer, max_attempts integer,
               crashes integer, created_at timestamptz, run_at timestamptz, claimed_at timestamptz, finished_at timestamptz,
               worker_id bigint, reason text, error text, message text, tags text[], result jsonb, progress jsonb,
               progress_at timestamptz)
language plpgsql stable security definer rows 10
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    return query
    with open as materialized (
        select r.id, 'ready' as state, r.queue, r.task, r.lane, r.attempt, r.max_attempts, r.crashes, r.created_at, r.run_at,
               null::timestamptz as claimed_at, null::timestamptz as finished_at, null::bigint as worker_id,
               null::bigint as lease, null::text as reason, null::text as error, null::text as message, r.options,
               null::jsonb as result
          from pgqueue.ready_jobs as r where r.id = any (look.ids)
        union all
        select s.id, 'scheduled', s.queue, s.task, s.lane, s.attempt, s.max_attempts, s.crashes, s.created_at, s.run_at, null,
               null, null, null, null, null, null, s.options, null
          from pgqueue.scheduled_jobs as s where s.id = any (look.ids)
        union all
        select b.id, 'blocked', b.queue, b.task, b.lane, b.attempt, b.max_attempts, b.crashes, b.created_at, b.run_at, null,
               null, null, null, null, null, null, b.options, null
          from pgqueue.blocked_jobs as b where b.id = any (look.ids)
        union all
        select r.id, 'running', r.queue, r.task, r.lane, r.attempt, r.max_attempts, r.crashes, r.created_at, r.run_at,
               r.claimed_at, null, r.worker_id, r.lease, null, null, null, r.options, null
          from pgqueue.running_jobs as r where r.id = any (look.ids)
        union all
        select d.id, 'dead', d.queue, d.task, d.lane, d.attempt, d.max_attempts, d.crashes, d.created_at, d.run_at,
               d.claimed_at, d.died_at, d.worker_id, null, d.reason, d.error, d.message, d.options, null
          from pgqueue.dead_letters as d where d.id = any (look.ids)
    ), found as (
        select * from open
        union all
        select f.id, f.state, f.queue, f.task, f.lane, f.attempt, f.max_attempts, f.crashes, f.created_at, f.run_at,
               f.claimed_at, f.finished_at, f.worker_id, null, f.reason, null, null, f.options, f.result
          from pgqueue.finished_jobs as f
         where f.id = any (array(select i.id from unnest(look.ids) as i (id)
                                  where i.id not in (select o.id from open as o)))
    )
    select j.id, j.state, j.queue, j.task, j.lane / 2, j.attempt::integer, j.max_attempts::integer, j.crashes::integer,
           j.created_at, j.run_at, j.claimed_at, j.finished_at, j.worker_id, j.reason, coalesce(j.error, f.error),
           coalesce(j.message, f.message),
           case when jsonb_typeof(j.options -> 'tags') = 'array'
                then array(select t.tag from jsonb_array_elements_text(j.options -> 'tags') as t (tag)) else '{}' end,
           j.result, coalesce(p.progress, r.progress), coalesce(p.noted_at, r.reported_at)
      from found as j
      left join lateral (select e.error, e.message from pgqueue.job_failures as e
                          where e.job_id = j.id and j.error is null order by e.failed_at desc limit 1) as f on true
      left join lateral (select l.progress, l.noted_at from pgqueue.job_progress as l
                          where l.job_id = j.id and l.lease = j.lease limit 1) as p on true
      left join lateral (select e.progress, e.reported_at from pgqueue.job_reports as e
                          where e.job_id = j.id and e.attempt = j.attempt and j.lease is null and e.progress is not null
                          order by e.reported_at desc limit 1) as r on true
     order by j.id;
end $$;
comment on function pgqueue.look(bigint[]) is
'What has become of jobs, a row for each that is on record. error and message: of the last attempt that failed. result: when the task keeps results, else null. progress: {done, total, message, metadata} of the attempt that runs, or of the last one.';
