-- Cancels jobs that wait or run by filter, the oldest first; at most max_jobs, so call it again while it returns as many.
-- Called by operators. Locks: those of cancel. Scans the tables of the states asked for.
create function pgqueue.cancel_matching(
    of_queue text default null, of_task text default null, of_tag text default null, of_state text default null,
    reason text default 'cancelled', max_jobs integer default 1000, created_after timestamptz default null,
    created_before timestamptz default null, of_fingerprint text default null, of_args jsonb default null
) returns table (id bigint, outcome text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    chosen bigint[];
    outer_filter constant text := current_setting('pgqueue.filter', true);
begin
    if num_nonnulls(of_queue, of_task, of_tag, of_state, created_after, created_before, of_fingerprint, of_args) = 0 then
        raise exception using errcode = 'PQ001', message = 'cancel_matching: no filter given',
            hint = 'Give at least one of of_queue, of_task, of_tag, of_state, created_after, created_before, of_fingerprint and of_args.';
    end if;
    if of_state is not null and of_state not in ('scheduled', 'ready', 'blocked', 'running') then
        raise exception using errcode = 'PQ001', message = format('of_state: %s is not one that can be cancelled', pgqueue.as_given(of_state)),
            hint = 'scheduled, ready, blocked or running. Dead letters are discarded.';
    end if;
    perform pgqueue.reject_search('max_jobs', max_jobs, of_args);
    chosen := array(
        select j.id
          from (select s.id, s.queue, s.task, s.created_at, s.args, s.options, 'scheduled' as state from pgqueue.scheduled_jobs as s
                union all
                select r.id, r.queue, r.task, r.created_at, r.args, r.options, 'ready' from pgqueue.ready_jobs as r
                union all
                select b.id, b.queue, b.task, b.created_at, b.args, b.options, 'blocked' from pgqueue.blocked_jobs as b
                union all
                select a.id, a.queue, a.task, a.created_at, a.args, a.options, 'running' from pgqueue.running_jobs as a
                 where not exists (select from pgqueue.cancel_requests as c where c.job_id = a.id and c.lease = a.lease)
               ) as j
         where (cancel_matching.of_state is null or j.state = cancel_matching.of_state)
           and (of_fingerprint is null or j.id in (select f.job_id from pgqueue.job_failures as f where f.fingerprint = of_fingerprint))
           and pgqueue.matches(j.queue, j.task, j.created_at, j.args, j.options,
                               of_queue, of_task, of_tag, created_after, created_before, of_args)
         order by j.id
         limit cancel_matching.max_jobs);
    perform set_config('pgqueue.filter', jsonb_strip_nulls(jsonb_build_object(
        'of_queue', of_queue, 'of_task', of_task, 'of_tag', of_tag, 'of_state', of_state, 'created_after', created_after,
        'created_before', created_before, 'of_fingerprint', of_fingerprint,
        'of_args', (select jsonb_agg(a.name) from jsonb_object_keys(of_args) as a (name))))::text, true);
    return query select c.id, c.outcome from pgqueue.cancel(chosen, cancel_matching.reason) as c;
    perform set_config('pgqueue.filter', coalesce(outer_filter, ''), true);
end $$;
comment on function pgqueue.cancel_matching(text, text, text, text, text, integer, timestamptz, timestamptz, text, jsonb) is
'Cancels jobs that wait or run and match every filter given, at most max_jobs of them. Rows as of cancel().';
