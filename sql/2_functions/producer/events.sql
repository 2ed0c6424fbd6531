-- The endings of attempts, in their order, read from the history itself: nothing is written for those who follow them.
-- Called by producers and operators. Locks: none. Index: finished_jobs_by_id (its second column), job_failures_by_time.
--
-- How none is missed: an ending draws its time while it holds a lock for writing on the table that keeps it. So (1) read the
-- clock, (2) then, who holds such a lock; once those have ended, (3) in a new statement, every ending up to that time is
-- there to be read, and none will join them. It is the rule of prove_floors. An ending in a transaction that stays open
-- holds back those that come after it, and so does nothing else. A clock that is set back hides what ends until it has
-- come up again.

-- (1) and (2).
create function pgqueue.events_horizon(out until timestamptz, out under_way text[])
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    until := clock_timestamp();
    under_way := pgqueue.endings_under_way();
end $$;
comment on function pgqueue.events_horizon() is
'A time up to which read_events() misses nothing once endings_under_way(among => under_way) is empty.';

-- (3). The endings after (after_at, after_id, after_attempt), the earliest first.
create function pgqueue.read_events(
    after_at timestamptz, after_id bigint, after_attempt integer, until timestamptz, of_queue text default null,
    of_task text default null, max_rows integer default 1000
) returns table (at timestamptz, job_id bigint, attempt integer, kind text, queue text, task text, worker_id bigint,
                 reason text, error text, message text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    -- a day before: an ending finds its partition a moment before it draws its time
    days constant date[] := array(
        select d.day::date from generate_series((greatest(after_at, '2020-01-01 UTC') at time zone 'UTC')::date - 1,
                                                (least(until, clock_timestamp() + interval '1 day') at time zone 'UTC')::date,
                                                interval '1 day') as d (day)) || date '-infinity';
begin
    perform pgqueue.reject_search('max_rows', max_rows, null);
    return query
    select e.at, e.job_id, e.attempt, e.kind, e.queue, e.task, e.worker_id, e.reason, e.error, e.message
      from (select f.finished_at as at, f.id as job_id, f.attempt::integer as attempt, f.state as kind, f.queue, f.task,
                   f.worker_id, f.reason, null::text as error, null::text as message
              from pgqueue.finished_jobs as f
             where f.day = any (days) and f.finished_at >= read_events.after_at and f.finished_at <= read_events.until
            union all
            select f.failed_at, f.job_id, f.attempt,
                   case when f.dead_reason is not null then 'dead' when f.error = 'pgqueue.Crashed' then 'rescued'
                        else 'failed' end,
                   f.queue, f.task, f.worker_id, f.dead_reason, f.error, f.message
              from pgqueue.job_failures as f
             where f.day = any (days) and f.failed_at >= read_events.after_at and f.failed_at <= read_events.until) as e
     where (e.at, e.job_id, e.attempt) > (read_events.after_at, read_events.after_id, read_events.after_attempt)
       and (read_events.of_queue is null or e.queue = read_events.of_queue)
       and (read_events.of_task is null or e.task = read_events.of_task)
     order by e.at, e.job_id, e.attempt
     limit read_events.max_rows;
end $$;
comment on function pgqueue.read_events(timestamptz, bigint, integer, timestamptz, text, text, integer) is
'The endings of attempts after a place and up to a time of events_horizon(), the earliest first. kind: completed, cancelled, failed (it is tried again), rescued (its worker died; it is tried again) or dead.';
