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
            problem := format('task: %L is not a name', left(task, 40));
            remedy := 'A task''s name has 1 to 200 characters, none of them a control character.';
        when length(queue) not between 1 and 100 or queue ~ '[[:cntrl:]*"'']' then
            problem := format('queue: %L is not a name', left(queue, 40));
            remedy := 'A queue''s name has 1 to 100 characters: no control characters, quotes or asterisks.';
        when priority not between 0 and 9 then
            problem := format('priority: %s is out of range', priority);
            remedy := 'Priorities go from 0 (first) to 9.';
        when run_at is not null and delay is not null then
            problem := 'run_at and delay: both given';
            remedy := 'Give one of them.';
        when not isfinite(run_at) or run_at > clock_timestamp() + interval '100 years' then
            problem := format('run_at: %s is out of range', run_at);
            remedy := 'At most 100 years ahead.';
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
            if options ? 'unique' then
                perform pgqueue.reject_unique(options -> 'unique', unique_key, run_at is not null or delay is not null, place);
            end if;
            return;
    end case;
    raise exception using errcode = 'PQ001', message = place || problem, hint = remedy;
end $$;
comment on function pgqueue.reject_job(text, jsonb, text, integer, timestamptz, double precision, integer, text, text, jsonb, bigint) is
'Private. Raises PQ001 or PQ003 naming the first bad argument, with a hint; returns when there is none.';

-- The same for each job of a bulk, in order. Called by enqueue_many only after its cheap test has failed, or before keys
-- are taken. Locks: none.
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
end $$;
comment on function pgqueue.reject_jobs(jsonb) is
'Private. Raises PQ001 or PQ003 naming the first bad job of a bulk by its place; returns when there is none.';
