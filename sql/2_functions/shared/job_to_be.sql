-- A new job as one value, for the conflicts of its unique key; and its options as they are stored.
-- Called by enqueue and enqueue_many for jobs with options.unique. Locks: none.
create function pgqueue.job_to_be(
    id bigint, run_at timestamptz, priority integer, max_attempts integer, queue text, task text, args jsonb,
    unique_key text, options jsonb
) returns jsonb language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return jsonb_build_object(
        'id', id, 'run_at', coalesce(run_at, now()), 'created_at', now(), 'lane', 2 * coalesce(priority, 5) + 1,
        'attempt', 0, 'max_attempts', coalesce(max_attempts, 5), 'crashes', 0, 'queue', coalesce(queue, 'default'),
        'task', task, 'args', coalesce(args, '{}'), 'unique_key', unique_key, 'options', pgqueue.options_to_store(options));
end $$;
comment on function pgqueue.job_to_be(bigint, timestamptz, integer, integer, text, text, jsonb, text, jsonb) is
'Private. A job as JSON, with the columns of blocked_jobs.';

-- What unique means is said with each enqueue and not stored; but a replay has to know that a key was for a period.
create function pgqueue.options_to_store(options jsonb)
returns jsonb language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if options #> '{unique, period}' is not null then
        return jsonb_set(options, '{unique}', jsonb_build_object('period', options #> '{unique, period}'));
    end if;
    return nullif(options - 'unique', '{}');
end $$;
comment on function pgqueue.options_to_store(jsonb) is 'Private. The options without unique, of which only the period stays.';
