-- What the queues keep, for retention. Without settings: completed and cancelled jobs 7 days, dead letters for ever.

-- The settings as text, to see whether they have changed. Called by upkeep and trim_history. Locks: none. Scans queues.
create function pgqueue.kept_settings()
returns text language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select coalesce(md5(string_agg(concat_ws(' ', q.name, coalesce(q.keep_completed::text, '-'), coalesce(q.keep_cancelled::text, '-'),
                                       coalesce(q.keep_dead::text, '-'), coalesce(q.max_completed::text, '-'),
                                       coalesce(q.max_cancelled::text, '-'), coalesce(q.max_dead::text, '-')), ';' order by q.name)), '')
          from pgqueue.queues as q
         where coalesce(q.keep_completed::text, q.keep_cancelled::text, q.keep_dead::text, q.max_completed::text,
                        q.max_cancelled::text, q.max_dead::text) is not null);
end $$;
comment on function pgqueue.kept_settings() is 'Private. What the queues keep, as text; empty: none says anything.';

-- Whether something is to be dropped or trimmed. Called by upkeep. Locks: none. Index: retention_one_row.
create function pgqueue.retention_due()
returns boolean language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from pgqueue.retention as r
                    where r.due_at <= clock_timestamp() or r.settings <> pgqueue.kept_settings()
                       or r.due_at > clock_timestamp() + interval '2 days');  -- before the clock was set back
end $$;
comment on function pgqueue.retention_due() is 'Private. Whether something may have to be dropped or trimmed.';

-- For how long completed or cancelled jobs are kept by the queue that keeps them longest. Called by retention. Locks: none.
create function pgqueue.longest_kept()
returns interval language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return least('1000 years', greatest('7 days', (select max(greatest(q.keep_completed, q.keep_cancelled)) from pgqueue.queues as q)));
end $$;
comment on function pgqueue.longest_kept() is 'Private. The longest retention of completed and cancelled jobs of any queue; 7 days at least.';

-- Before when an ending may go: roll_up has read it, and a minute has passed for those who wait for it.
-- Called by retention. Locks: none.
create function pgqueue.trim_horizon()
returns timestamptz language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select least(p.rolled_up_to, clock_timestamp() - interval '1 minute') from pgqueue.rollup_progress as p);
end $$;
comment on function pgqueue.trim_horizon() is 'Private. Jobs that ended after this are never trimmed.';

-- The rules of a pass: for queue (null: all others) and state, rows that ended before `before` go; those that are left go when
-- they are older than `keep` (null: with their day), or when there are too many (counted). None, if days are all that is to go.
-- Called by trim_history. Locks: none. Index: rollups_one_row_a_bucket_and_task.
--
-- A number of jobs is looked up in the rollups as the minute since which as many have ended (the hour, if it is two days ago): no
-- index on finished_jobs could count them.
create function pgqueue.keep_rules(in_overflow boolean)
returns jsonb language plpgsql stable
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan set enable_seqscan = off
as $$
declare
    longest constant interval := pgqueue.longest_kept();
    horizon constant timestamptz := pgqueue.trim_horizon();
    minutes_from constant timestamptz := date_trunc('hour', (select p.rolled_up_to from pgqueue.rollup_progress as p) - interval '47 hours');
begin
    return (
        with kept as (
            select q.name as queue, k.state, least(coalesce(k.keep, '7 days'), '1000 years') as keep, k.most
              from pgqueue.queues as q
             cross join lateral (values ('completed', q.keep_completed, q.max_completed),
                                        ('cancelled', q.keep_cancelled, q.max_cancelled)) as k (state, keep, most)
             where k.keep is not null or k.most is not null
            union all
            select null, s.state, interval '7 days', null from (values ('completed'), ('cancelled')) as s (state)
        ), ended as (
            select k.queue, k.state, k.most, r.bucket_at,
                   sum(case k.state when 'completed' then r.completed else r.cancelled end) as jobs
              from pgqueue.rollups as r join kept as k on k.queue = r.queue and k.most > 0
             where r.period = 'minute' and r.bucket_at >= minutes_from or r.period = 'hour' and r.bucket_at < minutes_from
             group by k.queue, k.state, k.most, r.bucket_at
        ), added_up as (
            select e.*, sum(e.jobs) over (partition by e.queue, e.state order by e.bucket_at desc) as since from ended as e
        ), counts as (
            select a.queue, a.state, max(a.bucket_at) as before from added_up as a where a.since >= a.most
             group by a.queue, a.state
        ), rules as (
            select k.queue, k.state, k.most is not null as counted,
                   case when k.keep < longest or in_overflow then k.keep end as keep,
                   case when k.keep < longest or in_overflow or k.most is not null
                        then least(horizon, greatest(clock_timestamp() - k.keep,
                                                     case k.most when 0 then horizon else c.before end)) end as before
              from kept as k left join counts as c on c.queue = k.queue and c.state = k.state
        )
        select case when bool_or(r.keep is not null or r.counted) then jsonb_agg(to_jsonb(r)) else '[]' end from rules as r);
end $$;
comment on function pgqueue.keep_rules(boolean) is 'Private. By which rules the rows of a partition go.';
