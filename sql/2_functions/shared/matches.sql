-- Whether a job is one of those that an operator means. Null: that filter was not given.
-- Called by find_jobs, find_dead, cancel_matching; it is inlined into their queries, so that it costs what is written out.
-- Locks: none. Index: none of its own.
create function pgqueue.matches(
    queue text, task text, created_at timestamptz, args jsonb, options jsonb,
    of_queue text, of_task text, of_tag text, created_after timestamptz, created_before timestamptz, of_args jsonb
) returns boolean language sql immutable parallel safe
return (of_queue is null or queue = of_queue)
   and (of_task is null or task = of_task)
   and (of_tag is null or options -> 'tags' ? of_tag)
   and (created_after is null or created_at >= created_after)
   and (created_before is null or created_at < created_before)
   and (of_args is null or args @> of_args);
comment on function pgqueue.matches(text, text, timestamptz, jsonb, jsonb, text, text, text, timestamptz, timestamptz, jsonb) is
'Private. Whether a job matches every filter given.';
