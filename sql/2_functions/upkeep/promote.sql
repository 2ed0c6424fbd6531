-- Makes due jobs ready, at most max_jobs. Called by upkeep.
-- Starts at the proven low-water mark of run_at, so that it never walks over the dead entries before it.
-- Locks: the promoted rows (skip locked). Index: scheduled_jobs_due.
create function pgqueue.promote(max_jobs integer)
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    -- A mark in the future says that the server's clock was set back: jobs may have been scheduled below it since.
    mark constant timestamptz := coalesce(
        (select f.proven_run_at from pgqueue.floor_proofs as f
          where f.subject = 'scheduled_jobs' and f.proven_run_at <= clock_timestamp()), '-infinity');
    -- A variable, for a volatile function cannot bound an index scan: it would walk over all that is not due yet.
    due_by constant timestamptz := clock_timestamp();
    lines text[];
begin
    if max_jobs < 0 then
        perform pgqueue.reject_range('max_jobs', max_jobs::text, 'From 0; null: as many as are due.');
    end if;
    with picked as (
        delete from pgqueue.scheduled_jobs as j
         where j.ctid = any (array(
             select s.ctid from pgqueue.scheduled_jobs as s
              where s.run_at >= mark and s.run_at <= due_by
              order by s.run_at
              limit promote.max_jobs
                for update skip locked))
        returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                  j.unique_key, j.options
    ), ready as (
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select p.id, p.run_at, p.created_at, p.lane, p.attempt, p.max_attempts, p.crashes, p.queue, p.task, p.args,
               p.unique_key, p.options
          from picked as p order by p.run_at, p.id
    )
    select array_agg(p.queue) into lines from picked as p;
    perform pgqueue.notify_sleepers(l.queue, l.jobs::integer)
       from (select q.queue, count(*) as jobs from unnest(lines) as q (queue) group by q.queue) as l;
    return coalesce(cardinality(lines), 0);
end $$;
comment on function pgqueue.promote(integer) is 'Makes up to max_jobs due jobs ready. Returns how many.';
