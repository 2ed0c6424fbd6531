-- Resumes queues whose pause had an end that has come. Called by upkeep, by the leader.
-- Locks: the queues' rows (skip locked: the next round comes soon). Scans queues, a row for each that has settings.
create function pgqueue.resume_due()
returns text[] language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    resumed text[];
begin
    with due as (
        select q.name from pgqueue.queues as q where q.resumes_at <= clock_timestamp() for update skip locked
    ), changed as (
        update pgqueue.queues as q set paused_at = null, resumes_at = null from due as d where q.name = d.name
        returning q.name
    )
    select array_agg(c.name order by c.name) into resumed from changed as c;
    perform pgqueue.notify_sleepers(r.name, 1000) from unnest(resumed) as r (name);
    return coalesce(resumed, '{}');
end $$;
comment on function pgqueue.resume_due() is 'Private. Resumes queues whose pause has come to its end. Returns which.';
