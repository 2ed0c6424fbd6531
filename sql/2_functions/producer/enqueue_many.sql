-- Inserts many jobs with one statement, in the caller's transaction; all or none.
-- Called by producers. `jobs` is a JSON array of objects keyed like the arguments of enqueue.
-- Locks: as enqueue, in the order that all verbs over several jobs keep (sql/README.md): idempotency keys, waiting holders that
-- it may change (lock_key_holders), unique keys; each in sorted order, keys in that of their bytes. Index: the primary keys.
create function pgqueue.enqueue_many(jobs jsonb, out ids bigint[], out created boolean[], out outcomes text[])
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
declare
    total bigint;
    ready bigint;
    later bigint;
    is_plain boolean;
    keyed boolean;
    asks boolean := false;
    lines text[];
    line_jobs bigint[];
    own_ids bigint[];
    new_ids bigint[];
    item record;
    last_n bigint;
    last_key text[];
    last_how jsonb;
    holder bigint;
    outcome text;
    again bigint[] := '{}';
    first_due timestamptz;
    asked jsonb;
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
    -- or no objects, which reject_jobs then says
    keyed := jsonb_path_exists(jobs, 'strict $[*] ? (@.type() != "object" || exists (@.unique_key) || exists (@.idempotency_key))');
    if pg_sequence_last_value('pgqueue.attempts_set') is not null then
        jobs := (select jsonb_agg(case when j.job ->> 'max_attempts' is null and q.name is not null
                                       then j.job || jsonb_build_object('max_attempts', q.max_attempts) else j.job end order by j.n)
                   from jsonb_array_elements(jobs) with ordinality as j (job, n)
                   left join pgqueue.queues as q on q.name = coalesce(j.job ->> 'queue', 'default') and q.max_attempts is not null
                                                and jsonb_typeof(j.job) = 'object');
    end if;
    if keyed then
        perform pgqueue.reject_jobs(jobs);  -- before a key is waited for
    end if;
    own_ids := array(select nextval('pgqueue.job_ids') from generate_series(1, total));
    new_ids := own_ids;
    ids := own_ids;
    if keyed then
        outcomes := array_fill('created'::text, array[total::integer]);
        -- All idempotency keys, then all unique keys, each in sorted order: one order for every bulk, whatever it mixes.
        for item in
            select j.task, j.idempotency_key, j.n
              from rows from (jsonb_to_recordset(jobs) as (task text, idempotency_key text))
                   with ordinality as j (task, idempotency_key, n)
             where j.idempotency_key is not null
             order by j.task collate "C", j.idempotency_key collate "C", j.n
        loop
            ids[item.n] := pgqueue.take_idempotency_key(item.task, item.idempotency_key, own_ids[item.n]);
            if ids[item.n] <> own_ids[item.n] then
                outcomes[item.n] := 'kept';
            end if;
        end loop;
        asks := jsonb_path_exists(jobs, '$[*].options.unique');
        if asks then
            perform pgqueue.lock_key_holders(jobs, array(select o.own_id = o.id
                                                       from unnest(own_ids, ids) with ordinality as o (own_id, id, n) order by o.n));
        end if;
        for item in
            select j.task, j.unique_key, j.idempotency_key, j.options -> 'unique' as how, j.n,
                   case when j.options #> '{unique, period}' is null then 'unique' else 'period' end as kind
              from rows from (jsonb_to_recordset(jobs) as (task text, unique_key text, idempotency_key text, options jsonb))
                   with ordinality as j (task, unique_key, idempotency_key, options, n)
             where j.unique_key is not null
             order by j.task collate "C", j.unique_key collate "C", kind, j.n
        loop
            continue when ids[item.n] <> own_ids[item.n];
            if array[item.task, item.unique_key, item.kind] is distinct from last_key then
                if item.how is null then
                    holder := own_ids[item.n];
                    outcome := 'created';
                    insert into pgqueue.unique_keys (kind, task, key, job_id)
                    values ('unique', item.task, item.unique_key, holder)
                    on conflict on constraint unique_keys_one_job_a_key do nothing;
                    if not found then
                        select k.holder, k.outcome into holder, outcome
                          from pgqueue.take_unique_key(item.task, item.unique_key, own_ids[item.n]) as k;
                    end if;
                else
                    select k.holder, k.outcome into holder, outcome
                      from jsonb_to_record(jobs -> (item.n - 1)::integer)
                           as j (args jsonb, queue text, priority integer, run_at timestamptz, delay double precision,
                                 max_attempts integer, options jsonb)
                           cross join lateral pgqueue.take_unique_key(
                               item.task, item.unique_key, own_ids[item.n], item.how, pgqueue.job_to_be(
                                   own_ids[item.n], coalesce(j.run_at, clock_timestamp() + make_interval(secs => j.delay)),
                                   j.priority, j.max_attempts, j.queue, item.task, j.args, item.unique_key, j.options)) as k;
                end if;
                last_n := item.n;
                last_key := array[item.task, item.unique_key, item.kind];
                last_how := item.how;
            else
                -- The same key again: what was found the first time still holds, or its holder is about to be inserted.
                -- What changes a holder is done when it is there.
                holder := ids[last_n];
                outcome := 'kept';
                if item.how is not null and (item.how is distinct from last_how
                                             or item.how ->> 'on_conflict' not in ('keep', 'follow_up')) then
                    again := again || item.n;
                end if;
            end if;
            ids[item.n] := holder;
            outcomes[item.n] := outcome;
            if holder <> own_ids[item.n] and item.idempotency_key is not null then
                -- the same enqueue, repeated, means the same job: so does its idempotency key, whoever came by it
                update pgqueue.unique_keys as k set job_id = holder
                 where k.kind = 'idempotency' and k.task = item.task and k.key = item.idempotency_key;
                ids := array_replace(ids, own_ids[item.n], holder);
            end if;
        end loop;
        new_ids := array(select case when o.outcome = 'created' then o.id end
                           from unnest(own_ids, outcomes) with ordinality as o (id, outcome, n) order by o.n);
        if asks then
            asked := jobs;
            jobs := (select jsonb_agg(case when j.job #> '{options, unique}' is null then j.job else jsonb_set(
                                          j.job, '{options}', coalesce(pgqueue.options_to_store(j.job -> 'options'), 'null'))
                                      end order by j.n)
                       from jsonb_array_elements(jobs) with ordinality as j (job, n));
        end if;
    end if;
    -- The jobs without a time of their own: nearly always all of them, so one plain insert. What could not be stored is
    -- left out, and so missed below; a cast that fails would say neither which job it was nor what of it. Names are looked
    -- at once a queue and task; one that a number or an object could have become is looked at as JSON.
    with inserted as (
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select j.id, now(), now(), 2 * coalesce(ascii(j.priority) - ascii('0'), 5) + 1, 0, coalesce(j.max_attempts::integer, 5), 0,
               coalesce(j.queue, 'default'), j.task, coalesce(j.args, '{}'), j.unique_key, j.options
          from rows from (jsonb_to_recordset(jobs) as (task text, args jsonb, queue text, priority text,
                   run_at text, delay text, max_attempts text, unique_key text,
                   idempotency_key text, options jsonb), unnest(new_ids))
               as j (task, args, queue, priority, run_at, delay, max_attempts, unique_key, idempotency_key, options, id)
         where j.id is not null and j.run_at is null and j.delay is null and j.task is not null
           and (j.args is null or jsonb_typeof(j.args) = 'object')
           and (j.priority is null or j.priority in ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'))
           and (j.max_attempts is null or j.max_attempts ~ '^[1-9][0-9]{0,4}$' and (length(j.max_attempts) < 5 or j.max_attempts <= '32767' collate "C"))
        returning queue, task, options is not null as has_options
    ), counted as (
        select i.queue, i.task, count(*) as jobs, bool_or(i.has_options) as has_options
          from inserted as i group by i.queue, i.task
    )
    select coalesce(array_agg(c.queue), '{}'), coalesce(array_agg(c.jobs), '{}'), coalesce(sum(c.jobs), 0),
           coalesce(bool_and(not c.has_options and length(c.task) between 1 and 200
                             and length(c.queue) between 1 and 100 and translate(c.queue, '*"''', '') = c.queue
                             and concat(c.task, c.queue) !~ '[[:cntrl:]]'
                             and concat_ws(chr(10), c.task, c.queue) !~ '(?n)^([-0-9{[]|true$|false$)'), true)
      into lines, line_jobs, ready, is_plain from counted as c;
    if not (keyed or is_plain and ready = total) then
        perform pgqueue.reject_jobs(jobs);  -- raises for what is wrong, and so undoes what was inserted
    end if;
    if ready < total then
        with given as materialized (
            select j.id, coalesce(j.run_at, clock_timestamp() + make_interval(secs => j.delay)) as due,
                   2 * coalesce(j.priority, 5) + 1 as lane, coalesce(j.max_attempts, 5) as max_attempts,
                   coalesce(j.queue, 'default') as queue, j.task, coalesce(j.args, '{}') as args, j.unique_key, j.options,
                   clock_timestamp() as seen_at  -- the clock is read by the statement that holds the lock (see enqueue)
              from rows from (jsonb_to_recordset(jobs) as (task text, args jsonb, queue text, priority integer,
                       run_at timestamptz, delay double precision, max_attempts integer, unique_key text,
                       idempotency_key text, options jsonb), unnest(new_ids))
                   as j (task, args, queue, priority, run_at, delay, max_attempts, unique_key, idempotency_key, options, id)
             where j.id is not null and (j.run_at is not null or j.delay is not null)
        ), scheduled as (
            insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                                args, unique_key, options)
            select g.id, g.due, now(), g.lane, 0, g.max_attempts, 0, g.queue, g.task, g.args, g.unique_key, g.options
              from given as g where g.due > g.seen_at
            returning run_at
        ), overdue as (
            insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                            args, unique_key, options)
            select g.id, g.due, now(), g.lane, 0, g.max_attempts, 0, g.queue, g.task, g.args, g.unique_key, g.options
              from given as g where g.due <= g.seen_at
            returning queue
        )
        select lines || coalesce(array_agg(o.queue), '{}'), line_jobs || coalesce(array_agg(1::bigint), '{}'),
               (select min(s.run_at) from scheduled as s), (select count(*) from scheduled) + count(*)
          into lines, line_jobs, first_due, later from overdue as o;
        if first_due is not null then
            perform pgqueue.wake_leader(first_due);
        end if;
        if ready + later < cardinality(array_remove(new_ids, null)) then
            perform pgqueue.reject_types(jobs);  -- what no statement above has taken: a number in an odd spelling
            raise exception using errcode = 'PQ001', message = 'jobs: some of them cannot be read',
                hint = 'Numbers are numbers, times ISO 8601.';  -- no job is ever left out in silence
        end if;
    end if;
    perform pgqueue.notify_sleepers(l.queue, sum(l.jobs)::integer)
       from unnest(lines, line_jobs) as l (queue, jobs) group by l.queue;
    foreach last_n in array again loop
        select e.id, e.outcome into holder, outcome
          from jsonb_to_record(asked -> (last_n - 1)::integer)
               as j (task text, args jsonb, queue text, priority integer, run_at timestamptz, delay double precision,
                     max_attempts integer, unique_key text, idempotency_key text, options jsonb)
               cross join lateral pgqueue.enqueue(j.task, j.args, j.queue, j.priority, j.run_at, j.delay, j.max_attempts,
                                                  j.unique_key, null, j.options) as e;
        ids[last_n] := holder;
        outcomes[last_n] := outcome;
    end loop;
    if keyed then
        created := array(select o.outcome in ('created', 'follow_up')
                           from unnest(outcomes) with ordinality as o (outcome, n) order by o.n);
    else
        created := array_fill(true, array[total::integer]);
    end if;
end $$;
comment on function pgqueue.enqueue_many(jsonb) is
'Enqueues many jobs in the caller''s transaction; all or none. Returns, in the order given, each job''s id, whether it was created, and, when some have keys, the outcome (see enqueue). A job that is refused is named by its place, counted from 0.';
