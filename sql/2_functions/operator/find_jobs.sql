-- The ids of jobs in any state by filter, newest first. Called by operators: jobs list, and before jobs cancel.
-- Locks: none. Index: the primary keys, backwards; the history is read a day after the other until there are enough.
create function pgqueue.find_jobs(
    of_states text[] default null, of_queue text default null, of_task text default null, of_tag text default null,
    max_rows integer default 100
) returns table (id bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    wanted constant text[] := coalesce(of_states, '{scheduled,ready,blocked,running,completed,cancelled,dead}');
    finished bigint[] := '{}';
    of_day date;
    found_here bigint[];
begin
    if not wanted <@ '{scheduled,ready,blocked,running,completed,cancelled,dead}'::text[] then
        raise exception using errcode = 'PQ001', message = format('of_states: %s', left(wanted::text, 80)),
            hint = 'scheduled, ready, blocked, running, completed, cancelled, dead.';
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
                 where f.day = of_day and f.state = any (wanted)
                   and (find_jobs.of_queue is null or f.queue = find_jobs.of_queue)
                   and (find_jobs.of_task is null or f.task = find_jobs.of_task)
                   and (find_jobs.of_tag is null or f.options -> 'tags' ? find_jobs.of_tag)
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
              where 'ready' = any (wanted)
                and (find_jobs.of_queue is null or r.queue = find_jobs.of_queue)
                and (find_jobs.of_task is null or r.task = find_jobs.of_task)
                and (find_jobs.of_tag is null or r.options -> 'tags' ? find_jobs.of_tag)
              order by r.id desc limit max_rows)
            union all
            (select s.id from pgqueue.scheduled_jobs as s
              where 'scheduled' = any (wanted)
                and (find_jobs.of_queue is null or s.queue = find_jobs.of_queue)
                and (find_jobs.of_task is null or s.task = find_jobs.of_task)
                and (find_jobs.of_tag is null or s.options -> 'tags' ? find_jobs.of_tag)
              order by s.id desc limit max_rows)
            union all
            (select b.id from pgqueue.blocked_jobs as b
              where 'blocked' = any (wanted)
                and (find_jobs.of_queue is null or b.queue = find_jobs.of_queue)
                and (find_jobs.of_task is null or b.task = find_jobs.of_task)
                and (find_jobs.of_tag is null or b.options -> 'tags' ? find_jobs.of_tag)
              order by b.id desc limit max_rows)
            union all
            (select r.id from pgqueue.running_jobs as r
              where 'running' = any (wanted)
                and (find_jobs.of_queue is null or r.queue = find_jobs.of_queue)
                and (find_jobs.of_task is null or r.task = find_jobs.of_task)
                and (find_jobs.of_tag is null or r.options -> 'tags' ? find_jobs.of_tag)
              order by r.id desc limit max_rows)
            union all
            (select d.id from pgqueue.dead_letters as d
              where 'dead' = any (wanted)
                and (find_jobs.of_queue is null or d.queue = find_jobs.of_queue)
                and (find_jobs.of_task is null or d.task = find_jobs.of_task)
                and (find_jobs.of_tag is null or d.options -> 'tags' ? find_jobs.of_tag)
              order by d.id desc limit max_rows)) as j
     order by j.id desc
     limit max_rows;
end $$;
comment on function pgqueue.find_jobs(text[], text, text, text, integer) is
'The ids of jobs that match every filter given, newest first. of_states: any of scheduled, ready, blocked, running, completed, cancelled, dead.';

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
