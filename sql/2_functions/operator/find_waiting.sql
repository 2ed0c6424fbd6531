-- Reads jobs that wait, with their args: the ready ones in the order in which they will be claimed, the scheduled ones by
-- their time, the blocked ones. Called by operators and tests. due_seconds is by the database's clock, less than 0: past.
-- Locks: none. Index: ready_jobs_lane for a queue, scheduled_jobs_due.
create function pgqueue.find_waiting(of_queue text default null, of_task text default null, max_rows integer default 1000)
returns table (id bigint, state text, queue text, task text, priority smallint, attempt smallint, max_attempts smallint,
               created_at timestamptz, run_at timestamptz, due_seconds double precision, args jsonb, unique_key text,
               options jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
    perform pgqueue.reject_search('max_rows', max_rows, null);
    return query
    (select r.id, 'ready', r.queue, r.task, (r.lane / 2)::smallint, r.attempt, r.max_attempts, r.created_at, r.run_at,
            extract(epoch from r.run_at - clock_timestamp())::double precision, r.args, r.unique_key, r.options
       from pgqueue.ready_jobs as r
      where (find_waiting.of_queue is null or r.queue = find_waiting.of_queue)
        and (find_waiting.of_task is null or r.task = find_waiting.of_task)
      order by r.queue, r.lane, r.position
      limit find_waiting.max_rows)
    union all
    (select s.id, 'scheduled', s.queue, s.task, (s.lane / 2)::smallint, s.attempt, s.max_attempts, s.created_at, s.run_at,
            extract(epoch from s.run_at - clock_timestamp())::double precision, s.args, s.unique_key, s.options
       from pgqueue.scheduled_jobs as s
      where (find_waiting.of_queue is null or s.queue = find_waiting.of_queue)
        and (find_waiting.of_task is null or s.task = find_waiting.of_task)
      order by s.run_at, s.id
      limit find_waiting.max_rows)
    union all
    (select b.id, 'blocked', b.queue, b.task, (b.lane / 2)::smallint, b.attempt, b.max_attempts, b.created_at, b.run_at,
            extract(epoch from b.run_at - clock_timestamp())::double precision, b.args, b.unique_key, b.options
       from pgqueue.blocked_jobs as b
      where (find_waiting.of_queue is null or b.queue = find_waiting.of_queue)
        and (find_waiting.of_task is null or b.task = find_waiting.of_task)
      order by b.id
      limit find_waiting.max_rows)
    limit find_waiting.max_rows;
end $$;
comment on function pgqueue.find_waiting(text, text, integer) is
'Jobs that wait, with their args: ready ones in the order of claiming, scheduled ones by their time, then blocked ones.';
