-- Cancels jobs that wait or run by filter, the oldest first; at most max_jobs, so call it again while it returns as many.
-- Called by operators. Locks: those of cancel. Scans the tables of the states asked for.
create function pgqueue.cancel_matching(
    of_queue text default null, of_task text default null, of_tag text default null, of_state text default null,
    reason text default 'cancelled', max_jobs integer default 1000
) returns table (id bigint, outcome text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    chosen bigint[];
begin
    if coalesce(of_queue, of_task, of_tag, of_state) is null then
        raise exception using errcode = 'PQ001', message = 'cancel_matching: no filter given',
            hint = 'Give at least one of of_queue, of_task, of_tag and of_state.';
    end if;
    if of_state is not null and of_state not in ('scheduled', 'ready', 'blocked', 'running') then
        raise exception using errcode = 'PQ001', message = format('of_state: %L is not one that can be cancelled', left(of_state, 40)),
            hint = 'scheduled, ready, blocked or running. Dead letters are discarded.';
    end if;
    chosen := array(
        select j.id
          from (select s.id, s.queue, s.task, s.options, 'scheduled' as state from pgqueue.scheduled_jobs as s
                union all
                select r.id, r.queue, r.task, r.options, 'ready' from pgqueue.ready_jobs as r
                union all
                select b.id, b.queue, b.task, b.options, 'blocked' from pgqueue.blocked_jobs as b
                union all
                select a.id, a.queue, a.task, a.options, 'running' from pgqueue.running_jobs as a
                 where not exists (select from pgqueue.cancel_requests as c where c.job_id = a.id and c.lease = a.lease)
               ) as j
         where (cancel_matching.of_queue is null or j.queue = cancel_matching.of_queue)
           and (cancel_matching.of_task is null or j.task = cancel_matching.of_task)
           and (cancel_matching.of_tag is null or j.options -> 'tags' ? cancel_matching.of_tag)
           and (cancel_matching.of_state is null or j.state = cancel_matching.of_state)
         order by j.id
         limit cancel_matching.max_jobs);
    return query select c.id, c.outcome from pgqueue.cancel(chosen, cancel_matching.reason) as c;
end $$;
comment on function pgqueue.cancel_matching(text, text, text, text, text, integer) is
'Cancels jobs that wait or run and match every filter given, at most max_jobs of them. Rows as of cancel().';
