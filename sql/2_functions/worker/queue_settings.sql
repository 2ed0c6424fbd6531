-- What operators have set for queues that concerns their workers. Called by supervisors before they start a worker, and
-- by upkeep: so every worker has it within a round, behind a pooler too. Locks: none. Index: queues_one_row_a_name.
create function pgqueue.queue_settings(queues text[])
returns jsonb language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
    return (select coalesce(jsonb_object_agg(q.name, jsonb_strip_nulls(jsonb_build_object('limit', q.worker_limit, 'timeout', q.timeout))), '{}')
              from pgqueue.queues as q
             where q.name = any (queue_settings.queues) and num_nonnulls(q.worker_limit, q.timeout) > 0);
end $$;
comment on function pgqueue.queue_settings(text[]) is
'What operators have set for queues that concerns their workers: {queue: {limit, timeout}}, a key only for what is set.';
