-- Deletes jobs in any state but running, with their failures, reports and steps: nothing of them is left. Called by
-- operators; who wants a record of the end cancels or discards instead.
-- Locks: the jobs' rows, by id, as cancel does, those of finished_jobs in the order in which they lie; those of free_keys. Index: the primary keys, finished_jobs_by_id, job_failures_by_job, job_reports_by_job.
--
-- As in cancel: a job moves while it is looked for, so the tables are looked through again for what was not found.
create function pgqueue.delete_jobs(ids bigint[])
returns table (id bigint, outcome text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan set max_parallel_workers_per_gather = 0
set synchronize_seqscans = off
as $$
#variable_conflict use_column
declare
    missing bigint[] := array(select distinct i.id from unnest(delete_jobs.ids) as i (id) where i.id is not null order by i.id);
    gone_now bigint[];
    unfinished bigint[];
    gone bigint[] := '{}';
    running bigint[] := '{}';
    held_keys jsonb;
    held_now jsonb;
begin
    for round in 1 .. 3 loop
        exit when cardinality(missing) = 0;
        -- Whatever the plan below, in the order of cancel and discard: table by table, by id.
        perform from pgqueue.scheduled_jobs as j where j.id = any (missing) order by j.id for update;
        perform from pgqueue.ready_jobs as j where j.id = any (missing) order by j.id for update;
        perform from pgqueue.dead_letters as j where j.id = any (missing) order by j.id for update;
        perform from pgqueue.blocked_jobs as j where j.id = any (missing) order by j.id for update;
        with scheduled as (
            delete from pgqueue.scheduled_jobs as j where j.id = any (missing) returning j.id, j.task, j.unique_key
        ), ready as (
            delete from pgqueue.ready_jobs as j where j.id = any (missing) returning j.id, j.task, j.unique_key
        ), blocked as (
            delete from pgqueue.blocked_jobs as j where j.id = any (missing) returning j.id
        ), dead as (
            delete from pgqueue.dead_letters as j where j.id = any (missing) returning j.id
        ), finished as (
            -- between as well: ids that lie together, as those of a step do, are a few ranges of the BRIN index
            delete from pgqueue.finished_jobs as j
             where j.id between missing[1] and missing[cardinality(missing)] and j.id = any (missing)
            returning j.id
        ), waited as (
            select s.id, s.task, s.unique_key from scheduled as s
            union all
            select r.id, r.task, r.unique_key from ready as r
            union all
            select b.id, null, null from blocked as b
        )
        select array(select w.id from waited as w), array(select d.id from dead as d union all select f.id from finished as f),
               (select jsonb_agg(jsonb_build_array(w.task, w.unique_key, w.id)) from waited as w where w.unique_key is not null)
          into unfinished, gone_now, held_now;
        held_keys := coalesce(held_keys || held_now, held_now, held_keys);
        if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
            perform pgqueue.tell_waiters(unfinished);
        end if;
        gone := gone || unfinished || gone_now;
        running := running || array(select r.id from pgqueue.running_jobs as r where r.id = any (missing));
        missing := array(select m.id from unnest(missing) as m (id) where m.id <> all (gone || running) order by m.id);
    end loop;
    if held_keys is not null then  -- when no job is waited for any more
        perform pgqueue.free_keys(held_keys, with_periods => true);
    end if;
    delete from pgqueue.job_failures as f where f.job_id = any (gone);
    delete from pgqueue.job_reports as r where r.job_id = any (gone);
    delete from pgqueue.job_steps as s where s.job_id = any (gone);
    perform pgqueue.audited('delete_jobs', ids => gone);
    return query select g.id, 'deleted' from unnest(gone) as g (id)
                 union all
                 select r.id, 'running' from unnest(running) as r (id);
end $$;
comment on function pgqueue.delete_jobs(bigint[]) is
'Deletes jobs, and all that is on record of them. A row a job that exists: deleted, or running (it is left alone: cancel it first). An idempotency key that it took stays taken until it expires.';
