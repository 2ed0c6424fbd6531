-- Reads dead letters by filter, newest first. Called by operators: dead list, show, and before replay and discard.
-- Locks: none. Index: dead_letters_one_row_a_job for ids, else dead_letters_by_time.
create function pgqueue.find_dead(
    of_ids bigint[] default null, of_queue text default null, of_task text default null, of_reason text default null,
    of_error text default null, died_after timestamptz default null, died_before timestamptz default null,
    max_rows integer default 100, of_tag text default null, of_fingerprint text default null, of_args jsonb default null
) returns table (id bigint, queue text, task text, priority smallint, reason text, error text, message text, attempt smallint,
                 max_attempts smallint, crashes smallint, created_at timestamptz, died_at timestamptz, args jsonb,
                 unique_key text, options jsonb, errors jsonb, fingerprint text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
    perform pgqueue.reject_search('max_rows', max_rows, of_args);
    return query
    select d.id, d.queue, d.task, (d.lane / 2)::smallint, d.reason, d.error, d.message, d.attempt, d.max_attempts, d.crashes,
           d.created_at, d.died_at, d.args, d.unique_key, d.options, d.errors, d.fingerprint
      from pgqueue.dead_letters as d
     where (find_dead.of_ids is null or d.id = any (find_dead.of_ids))
       and pgqueue.matches(d.queue, d.task, d.created_at, d.args, d.options,
                           of_queue, of_task, of_tag, null, null, of_args)
       and (find_dead.of_fingerprint is null or d.fingerprint = find_dead.of_fingerprint)
       and (find_dead.of_reason is null or d.reason = find_dead.of_reason)
       and (find_dead.of_error is null or strpos(lower(d.error || ': ' || coalesce(d.message, '')), lower(find_dead.of_error)) > 0)
       and (find_dead.died_after is null or d.died_at >= find_dead.died_after)
       and (find_dead.died_before is null or d.died_at < find_dead.died_before)
     order by d.died_at desc, d.id desc
     limit find_dead.max_rows;
end $$;
comment on function pgqueue.find_dead(bigint[], text, text, text, text, timestamptz, timestamptz, integer, text, text, jsonb) is
'Dead letters that match every filter given, newest first. `of_error`: part of the error''s class or text, any case. of_fingerprint: that of the last error. of_args: part of its args, as by @>.';
