-- Inserts many jobs with one statement, in the caller's transaction; all or none.
-- Called by producers. `jobs` is a JSON array of objects keyed like the arguments of enqueue.
-- Locks: as enqueue; keys are taken in sorted order, so that two bulks cannot deadlock. Index: the primary keys.
create function pgqueue.enqueue_many(jobs jsonb, out ids bigint[], out created boolean[])
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
declare
    total bigint;
    ready bigint;
    is_plain boolean;
    keyed boolean;
    lines text[];
    line_jobs bigint[];
    own_ids bigint[];
    item record;
begin
    if jobs is null or jsonb_typeof(jobs) <> 'array' then
        raise exception using errcode = 'PQ001', message = 'jobs: expected a JSON array',
            hint = 'An array of objects keyed like the arguments of pgqueue.enqueue.';
    end if;
    total := jsonb_array_length(jobs);
    if total = 0 then
        ids := '{}';
        created := '{}';
        return;
    end if;
    keyed := jsonb_path_exists(jobs, '$[*].unique_key') or jsonb_path_exists(jobs, '$[*].idempotency_key');
    if keyed then
        perform pgqueue.reject_jobs(jobs);  -- before a key is waited for
    end if;
    own_ids := array(select nextval('pgqueue.job_ids') from generate_series(1, total));
    ids := own_ids;
    if keyed then
        -- All idempotency keys, then all unique keys, each in sorted order: one order for every bulk, whatever it mixes.
        for item in
            select j.task, j.idempotency_key, j.n
              from rows from (jsonb_to_recordset(jobs) as (task text, idempotency_key text))
                   with ordinality as j (task, idempotency_key, n)
             where j.idempotency_key is not null
             order by j.task, j.idempotency_key, j.n
        loop
            ids[item.n] := pgqueue.take_keys(item.task, null, item.idempotency_key, own_ids[item.n]);
        end loop;
        for item in
            select j.task, j.unique_key, j.idempotency_key, j.n
              from rows from (jsonb_to_recordset(jobs) as (task text, unique_key text, idempotency_key text))
                   with ordinality as j (task, unique_key, idempotency_key, n)
             where j.unique_key is not null
             order by j.task, j.unique_key, j.n
        loop
            continue when ids[item.n] <> own_ids[item.n];
            ids[item.n] := pgqueue.take_keys(item.task, item.unique_key, null, own_ids[item.n]);
            if ids[item.n] <> own_ids[item.n] and item.idempotency_key is not null then
                -- as take_keys does: the idempotency key, and whoever it led to this job, now leads to the holder
                update pgqueue.unique_keys as k set job_id = ids[item.n]
                 where k.kind = 'idempotency' and k.task = item.task and k.key = item.idempotency_key;
                ids := array_replace(ids, own_ids[item.n], ids[item.n]);
            end if;
        end loop;
    end if;
    -- The jobs without a time of their own: nearly always all of them, so one plain insert. What could not be stored is
    -- left out, and so missed below. Names are looked at once a queue and task.
    with inserted as (
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select j.own_id, now(), now(), 2 * coalesce(j.priority, 5) + 1, 0, coalesce(j.max_attempts, 5), 0,
               coalesce(j.queue, 'default'), j.task, coalesce(j.args, '{}'), j.unique_key, j.options
          from rows from (jsonb_to_recordset(jobs) as (task text, args jsonb, queue text, priority integer,
                   run_at timestamptz, delay double precision, max_attempts integer, unique_key text,
                   idempotency_key text, options jsonb), unnest(own_ids), unnest(enqueue_many.ids))
               as j (task, args, queue, priority, run_at, delay, max_attempts, unique_key, idempotency_key, options,
                     own_id, id)
         where j.id = j.own_id and j.run_at is null and j.delay is null and j.task is not null
           and (j.args is null or jsonb_typeof(j.args) = 'object')
           and (j.priority is null or j.priority between 0 and 9)
           and (j.max_attempts is null or j.max_attempts between 1 and 32767)
        returning queue, task, options is not null as has_options
    ), counted as (
        select i.queue, i.task, count(*) as jobs, bool_or(i.has_options) as has_options
          from inserted as i group by i.queue, i.task
    )
    select coalesce(array_agg(c.queue), '{}'), coalesce(array_agg(c.jobs), '{}'), coalesce(sum(c.jobs), 0),
           coalesce(bool_and(not c.has_options and length(c.task) between 1 and 200
                             and length(c.queue) between 1 and 100 and translate(c.queue, '*"''', '') = c.queue
                             and concat(c.task, c.queue) !~ '[[:cntrl:]]'), true)
      into lines, line_jobs, ready, is_plain from counted as c;
    if not (keyed or is_plain and ready = total) then
        perform pgqueue.reject_jobs(jobs);  -- raises for what is wrong, and so undoes what was inserted
    end if;
    if ready < total then
        with given as materialized (
            select j.own_id as id, coalesce(j.run_at, clock_timestamp() + make_interval(secs => j.delay)) as due,
                   2 * coalesce(j.priority, 5) + 1 as lane, coalesce(j.max_attempts, 5) as max_attempts,
                   coalesce(j.queue, 'default') as queue, j.task, coalesce(j.args, '{}') as args, j.unique_key, j.options,
                   clock_timestamp() as seen_at  -- the clock is read by the statement that holds the lock (see enqueue)
              from rows from (jsonb_to_recordset(jobs) as (task text, args jsonb, queue text, priority integer,
                       run_at timestamptz, delay double precision, max_attempts integer, unique_key text,
                       idempotency_key text, options jsonb), unnest(own_ids), unnest(enqueue_many.ids))
                   as j (task, args, queue, priority, run_at, delay, max_attempts, unique_key, idempotency_key, options,
                         own_id, id)
             where j.id = j.own_id and (j.run_at is not null or j.delay is not null)
        ), scheduled as (
            insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                                args, unique_key, options)
            select g.id, g.due, now(), g.lane, 0, g.max_attempts, 0, g.queue, g.task, g.args, g.unique_key, g.options
              from given as g where g.due > g.seen_at
        ), overdue as (
            insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                            args, unique_key, options)
            select g.id, g.due, now(), g.lane, 0, g.max_attempts, 0, g.queue, g.task, g.args, g.unique_key, g.options
              from given as g where g.due <= g.seen_at
            returning queue
        )
        select lines || coalesce(array_agg(o.queue), '{}'),
               line_jobs || coalesce(array_agg(1::bigint), '{}') into lines, line_jobs from overdue as o;
    end if;
    perform pgqueue.notify_sleepers(l.queue, sum(l.jobs)::integer)
       from unnest(lines, line_jobs) as l (queue, jobs) group by l.queue;
    if keyed then
        created := array(select i.id = i.own_id from unnest(enqueue_many.ids, own_ids) with ordinality as i (id, own_id, n)
                          order by i.n);
    else
        created := array_fill(true, array[total::integer]);
    end if;
end $$;
comment on function pgqueue.enqueue_many(jsonb) is
'Enqueues many jobs in the caller''s transaction; all or none. Returns, in the order given, each job''s id and whether it was created. A job that is refused is named by its place, counted from 0.';
