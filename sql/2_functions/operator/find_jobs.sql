-- The ids of jobs in any state by filter, newest first. Called by operators: jobs list, and before what they do by filter.
-- Locks: none. Index: the primary keys, backwards; the history is read a day after the other until there are enough. By
-- fingerprint the failures are scanned first.
create function pgqueue.find_jobs(
    of_states text[] default null, of_queue text default null, of_task text default null, of_tag text default null,
    max_rows integer default 100, created_after timestamptz default null, created_before timestamptz default null,
    of_fingerprint text default null, of_args jsonb default null
) returns table (id bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    wanted constant text[] := coalesce(of_states, '{scheduled,ready,blocked,running,completed,cancelled,dead}');
    failed bigint[];
    finished bigint[] := '{}';
    of_day date;
    found_here bigint[];
begin
    if not wanted <@ '{scheduled,ready,blocked,running,completed,cancelled,dead}'::text[] then
        raise exception using errcode = 'PQ001', message = format('of_states: %s: not all of them are states', pgqueue.as_given(wanted::text, 80)),
            hint = 'scheduled, ready, blocked, running, completed, cancelled, dead.';
    end if;
    perform pgqueue.reject_search('max_rows', max_rows, of_args);
    if of_fingerprint is not null then
        failed := array(select distinct f.job_id from pgqueue.job_failures as f where f.fingerprint = of_fingerprint);
    end if;
    if wanted && '{completed,cancelled}' then
        for of_day in
            select coalesce(to_date(substring(c.relname from '_(\d{8})$'), 'YYYYMMDD'), '-infinity') as day
              from pg_catalog.pg_inherits as i join pg_catalog.pg_class as c on c.oid = i.inhrelid
             where i.inhparent = 'pgqueue.finished_jobs'::regclass
             order by day desc
        loop
            found_here := array(
                select f.id from pgqueue.finished_jobs as f
                 where f.day = of_day and f.state = any (wanted) and (failed is null or f.id = any (failed))
                   and pgqueue.matches(f.queue, f.task, f.created_at, f.args, f.options,
                                       of_queue, of_task, of_tag, created_after, created_before, of_args)
                 order by f.id desc limit max_rows);
            finished := finished || found_here;
            exit when cardinality(finished) >= max_rows;
        end loop;
    end if;
    return query
    select j.id
      from ((select f.id from unnest(finished) as f (id))
            union all
            (select r.id from pgqueue.ready_jobs as r
              where 'ready' = any (wanted) and (failed is null or r.id = any (failed))
                and pgqueue.matches(r.queue, r.task, r.created_at, r.args, r.options,
                                    of_queue, of_task, of_tag, created_after, created_before, of_args)
              order by r.id desc limit max_rows)
            union all
            (select s.id from pgqueue.scheduled_jobs as s
              where 'scheduled' = any (wanted) and (failed is null or s.id = any (failed))
                and pgqueue.matches(s.queue, s.task, s.created_at, s.args, s.options,
                                    of_queue, of_task, of_tag, created_after, created_before, of_args)
              order by s.id desc limit max_rows)
            union all
            (select b.id from pgqueue.blocked_jobs as b
              where 'blocked' = any (wanted) and (failed is null or b.id = any (failed))
                and pgqueue.matches(b.queue, b.task, b.created_at, b.args, b.options,
                                    of_queue, of_task, of_tag, created_after, created_before, of_args)
              order by b.id desc limit max_rows)
            union all
            (select a.id from pgqueue.running_jobs as a
              where 'running' = any (wanted) and (failed is null or a.id = any (failed))
                and pgqueue.matches(a.queue, a.task, a.created_at, a.args, a.options,
                                    of_queue, of_task, of_tag, created_after, created_before, of_args)
              order by a.id desc limit max_rows)
            union all
            (select d.id from pgqueue.dead_letters as d
              where 'dead' = any (wanted) and (failed is null or d.id = any (failed) or d.fingerprint = of_fingerprint)
                and pgqueue.matches(d.queue, d.task, d.created_at, d.args, d.options,
                                    of_queue, of_task, of_tag, created_after, created_before, of_args)
              order by d.id desc limit max_rows)) as j
     order by j.id desc
     limit max_rows;
end $$;
comment on function pgqueue.find_jobs(text[], text, text, text, integer, timestamptz, timestamptz, text, jsonb) is
'The ids of jobs that match every filter given, newest first. of_states: any of scheduled, ready, blocked, running, completed, cancelled, dead. created_after, created_before: when it was enqueued. of_fingerprint: an attempt of it failed so. of_args: part of its args, as by @>.';

-- What look() leaves out: a job's args and options, its failures and its reports. Called by operators: jobs show.
-- Locks: none. Index: as of look.
create function pgqueue.job_record(id bigint)
returns table (args jsonb, options jsonb, unique_key text, failures jsonb, reports jsonb)
language plpgsql stable security definer rows 1
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    return query
    with found as (
        select r.args, r.options, r.unique_key, null::jsonb as errors from pgqueue.ready_jobs as r where r.id = job_record.id
        union all
        select s.args, s.options, s.unique_key, null from pgqueue.scheduled_jobs as s where s.id = job_record.id
        union all
        select b.args, b.options, b.unique_key, null from pgqueue.blocked_jobs as b where b.id = job_record.id
        union all
        select r.args, r.options, r.unique_key, null from pgqueue.running_jobs as r where r.id = job_record.id
        union all
        select d.args, d.options, d.unique_key, d.errors from pgqueue.dead_letters as d where d.id = job_record.id
        union all
        select f.args, f.options, f.unique_key, null from pgqueue.finished_jobs as f where f.id = job_record.id
    )
    select j.args, j.options, j.unique_key, coalesce(j.errors, pgqueue.earlier_failures(job_record.id)),
           (select coalesce(jsonb_agg(jsonb_build_object('attempt', e.attempt, 'worker_id', e.worker_id, 'reported_at', e.reported_at,
                                          'progress', e.progress, 'lines', e.lines) order by e.reported_at), '[]')
              from pgqueue.job_reports as e where e.job_id = job_record.id)
      from found as j;
end $$;
comment on function pgqueue.job_record(bigint) is
'A job''s args and options, its failed attempts, and the progress and log lines that its attempts left; no row: it is not on record.';
