-- Says what is wrong with a job, and refuses it with SQLSTATE PQ001 (PQ003 for args) and a hint.
-- Called by enqueue and enqueue_many only after their cheap test has failed. Locks: none.
create function pgqueue.reject_job(
    task text, args jsonb, queue text, priority integer, run_at timestamptz, delay double precision,
    max_attempts integer, unique_key text, idempotency_key text, options jsonb, item bigint default null
) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    place constant text := coalesce('item ' || item || ': ', '');
    problem text;
    remedy text;
begin
    if args is null or jsonb_typeof(args) <> 'object' then
        raise exception using errcode = 'PQ003',
            message = place || 'args: expected a JSON object, got ' || coalesce('a JSON ' || jsonb_typeof(args), 'null'),
            hint = 'Name each argument: {"user_id": 7}.';
    end if;
    case
        when task is null or length(task) not between 1 and 200 or task ~ '[[:cntrl:]]' then
            problem := format('task: %s is not a name', pgqueue.as_given(task));
            remedy := 'A task''s name has 1 to 200 characters, none of them a control character.';
        when length(queue) not between 1 and 100 or queue ~ '[[:cntrl:]*"'']' then
            problem := format('queue: %s is not a name', pgqueue.as_given(queue));
            remedy := 'A queue''s name has 1 to 100 characters: no control characters, quotes or asterisks.';
        when priority not between 0 and 9 then
            problem := format('priority: %s is out of range', priority);
            remedy := 'Priorities go from 0 (first) to 9.';
        when run_at is not null and delay is not null then
            problem := 'run_at and delay: both given';
            remedy := 'Give one of them.';
        when not isfinite(run_at) or run_at >= '2200-01-02 00:00:00+00' then
            problem := format('run_at: %s is out of range', run_at);
            remedy := 'Up to the year 2199.';
        when not (delay >= 0 and delay <= 315360000) then
            problem := format('delay: %s is out of range', delay);
            remedy := 'Seconds, from 0 to ten years.';
        when max_attempts not between 1 and 32767 then
            problem := format('max_attempts: %s is out of range', max_attempts);
            remedy := 'From 1 to 32767.';
        when length(unique_key) not between 1 and 255 then
            problem := format('unique_key: %s characters', length(unique_key));
            remedy := 'From 1 to 255 characters.';
        when length(idempotency_key) not between 1 and 255 then
            problem := format('idempotency_key: %s characters', length(idempotency_key));
            remedy := 'From 1 to 255 characters.';
        when jsonb_typeof(options) <> 'object' then
            problem := 'options: expected a JSON object, got a JSON ' || jsonb_typeof(options);
            remedy := 'Keys: tags, metadata, retry, unique.';
        else
            if options ?| '{expires_at,expires_in}' then
                perform pgqueue.reject_expiry(options -> 'expires_at', options -> 'expires_in', place);
            end if;
            if options ? 'unique' then
                perform pgqueue.reject_unique(options -> 'unique', unique_key, run_at is not null or delay is not null, place);
            end if;
            return;
    end case;
    raise exception using errcode = 'PQ001', message = place || problem, hint = remedy;
end $$;
comment on function pgqueue.reject_job(text, jsonb, text, integer, timestamptz, double precision, integer, text, text, jsonb, bigint) is
'Private. Raises PQ001 or PQ003 naming the first bad argument, with a hint; returns when there is none.';

-- The same for when a job expires, for a worker reads it in the database, of many jobs at once. Called by reject_job.
-- Locks: none.
create function pgqueue.reject_expiry(expires_at jsonb, expires_in jsonb, place text) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(expires_at) <> 'null' and pgqueue.as_moment(expires_at) is null then
        raise exception using errcode = 'PQ001',
            message = place || format('options.expires_at: %s is no time', pgqueue.as_given(expires_at #>> '{}')),
            hint = 'ISO 8601, such as 2026-11-23T09:00:00+00:00.';
    end if;
    if jsonb_typeof(expires_in) <> 'null' and not (case when jsonb_typeof(expires_in) = 'number'
                                                        then expires_in::numeric between 0 and 315360000 else false end) then
        raise exception using errcode = 'PQ001', message = place || format('options.expires_in: %s is out of range', left(expires_in::text, 40)),
            hint = 'Seconds, from 0 to ten years.';
    end if;
end $$;
comment on function pgqueue.reject_expiry(jsonb, jsonb, text) is
'Private. Raises PQ001 for an options.expires_at or expires_in that is none; returns when they can be read.';

-- A time that JSON has as text, null when it is none. Called for what is to be refused. Locks: none.
create function pgqueue.as_moment(given jsonb) returns timestamptz language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return case when jsonb_typeof(given) = 'string' then (given #>> '{}')::timestamptz end;
exception when data_exception then
    return null;
end $$;
comment on function pgqueue.as_moment(jsonb) is 'Private. JSON text as a time; null when it is none.';

-- The same as reject_job for each job of a bulk, in order. Called by enqueue_many only after its cheap test has failed, or
-- before keys are taken. Locks: none.
create function pgqueue.reject_jobs(jobs jsonb) returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off
as $$
begin
    perform pgqueue.reject_job(j.task, coalesce(j.args, '{}'), j.queue, j.priority, j.run_at, j.delay, j.max_attempts,
                               j.unique_key, j.idempotency_key, j.options, j.n - 1)
       from rows from (jsonb_to_recordset(reject_jobs.jobs) as (task text, args jsonb, queue text, priority integer,
               run_at timestamptz, delay double precision, max_attempts integer, unique_key text,
               idempotency_key text, options jsonb)) with ordinality
            as j (task, args, queue, priority, run_at, delay, max_attempts, unique_key, idempotency_key, options, n)
      order by j.n;
    if jsonb_path_exists(jobs, 'strict $[*] ? (@.task.type() != "string" || @.queue.type() != "string" && @.queue.type() != "null")') then
        perform pgqueue.reject_types(jobs);  -- a number has become a name
    end if;
exception when data_exception then  -- a cast: of no object, of what is no number or no time
    perform pgqueue.reject_types(jobs);
    raise;
end $$;
comment on function pgqueue.reject_jobs(jsonb) is
'Private. Raises PQ001 or PQ003 naming the first bad job of a bulk by its place; returns when there is none.';

-- Says which job of a bulk is no object, or has a value that cannot be read. Called by enqueue_many and reject_jobs when one
-- has: of the numbers it takes plain digits, as enqueue_many does. Locks: none.
create function pgqueue.reject_types(jobs jsonb) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    item record;
    given text;
    problem text;
    remedy text;
begin
    for item in select i.job, i.n - 1 as place from jsonb_array_elements(jobs) with ordinality as i (job, n) order by i.n loop
        case
            when jsonb_typeof(item.job) <> 'object' then
                problem := format('expected a JSON object, got a JSON %s', jsonb_typeof(item.job));
                remedy := 'Keyed like the arguments of pgqueue.enqueue: {"task": "send_welcome", "args": {"user_id": 7}}.';
            when jsonb_typeof(item.job -> 'task') not in ('string', 'null') then
                problem := format('task: expected text, got a JSON %s', jsonb_typeof(item.job -> 'task'));
                remedy := 'A task''s name has 1 to 200 characters, none of them a control character.';
            when jsonb_typeof(item.job -> 'queue') not in ('string', 'null') then
                problem := format('queue: expected text, got a JSON %s', jsonb_typeof(item.job -> 'queue'));
                remedy := 'A queue''s name has 1 to 100 characters: no control characters, quotes or asterisks.';
            when item.job ->> 'priority' !~ '^(0|-?[1-9][0-9]{0,8})$' then
                problem := format('priority: %s is no whole number', pgqueue.as_given(item.job ->> 'priority'));
                remedy := 'Priorities go from 0 (first) to 9.';
            when item.job ->> 'max_attempts' !~ '^(0|-?[1-9][0-9]{0,8})$' then
                problem := format('max_attempts: %s is no whole number', pgqueue.as_given(item.job ->> 'max_attempts'));
                remedy := 'From 1 to 32767.';
            when pgqueue.as_number(item.job -> 'delay') is null and item.job ->> 'delay' is not null then
                problem := format('delay: %s is no number', pgqueue.as_given(item.job ->> 'delay'));
                remedy := 'Seconds, from 0 to ten years.';
            when pgqueue.as_moment(item.job -> 'run_at') is null and item.job ->> 'run_at' is not null then
                problem := format('run_at: %s is no time', pgqueue.as_given(item.job ->> 'run_at'));
                remedy := 'ISO 8601, such as 2026-11-23T09:00:00+00:00.';
            else
                continue;
        end case;
        raise exception using errcode = 'PQ001', message = format('item %s: %s', item.place, problem), hint = remedy;
    end loop;
end $$;
comment on function pgqueue.reject_types(jsonb) is
'Private. Raises PQ001 naming the first job of a bulk with a value that cannot be read; returns when there is none.';

-- A number that JSON has, null when it is none. Called by reject_types. Locks: none.
create function pgqueue.as_number(given jsonb) returns double precision language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (given #>> '{}')::double precision;
exception when data_exception then
    return null;
end $$;
comment on function pgqueue.as_number(jsonb) is 'Private. A JSON number, or text that is one; null when it is none.';
