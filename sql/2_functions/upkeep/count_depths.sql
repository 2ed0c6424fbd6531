-- Counts the jobs of each state by queue and task, for views and thresholds. Called by the leader when upkeep says that it is
-- due: what is said there bounds it to a twentieth of the time.
-- Locks: an advisory one, shared with roll_up, row exclusive on its own tables; it waits for nobody.
-- Scans the state tables, in one statement, so that a job is counted once; on one processor, for the others are the workers'.
create function pgqueue.count_depths()
returns double precision language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set max_parallel_workers_per_gather = 0 set plan_cache_mode = force_custom_plan
set enable_sort = off
as $$
declare
    began_at constant timestamptz := clock_timestamp();
    ids bigint;
    places bigint;
    moves boolean;
    took double precision;
begin
    perform set_config('synchronous_commit', 'off', true);
    if not pg_try_advisory_xact_lock(hashtextextended('pgqueue.figures', 0)) then
        return null;
    end if;
    -- before the count, so that what comes meanwhile makes the next one due
    select s.last_value + s.is_called::integer into ids from pgqueue.job_ids as s;
    select s.last_value + s.is_called::integer into places from pgqueue.positions as s;
    with counted as materialized (
        select j.queue, j.task, 'ready' as state, count(*) as jobs, min(j.run_at) as oldest_at
          from pgqueue.ready_jobs as j group by j.queue, j.task
        union all
        select j.queue, j.task, 'scheduled', count(*), null from pgqueue.scheduled_jobs as j group by j.queue, j.task
        union all
        select j.queue, j.task, 'blocked', count(*), null from pgqueue.blocked_jobs as j group by j.queue, j.task
        union all
        select j.queue, j.task, 'running', count(*), min(j.claimed_at) from pgqueue.running_jobs as j group by j.queue, j.task
        union all
        select j.queue, j.task, 'dead', count(*), null from pgqueue.dead_letters as j group by j.queue, j.task
    ), depths as (
        select c.queue, c.task, coalesce(sum(c.jobs) filter (where c.state = 'ready'), 0)::bigint as ready,
               coalesce(sum(c.jobs) filter (where c.state = 'scheduled'), 0)::bigint as scheduled,
               coalesce(sum(c.jobs) filter (where c.state = 'blocked'), 0)::bigint as blocked,
               coalesce(sum(c.jobs) filter (where c.state = 'running'), 0)::bigint as running,
               coalesce(sum(c.jobs) filter (where c.state = 'dead'), 0)::bigint as dead,
               min(c.oldest_at) filter (where c.state = 'ready') as oldest_ready_at,
               min(c.oldest_at) filter (where c.state = 'running') as oldest_claimed_at
          from counted as c group by c.queue, c.task
    ), none_left as (
        update pgqueue.depths as d
           set ready = 0, scheduled = 0, blocked = 0, running = 0, dead = 0, oldest_ready_at = null, oldest_claimed_at = null
         where d.ready + d.scheduled + d.blocked + d.running + d.dead > 0
           and not exists (select from counted as c where c.queue = d.queue and c.task = d.task)
    ), written as (
        insert into pgqueue.depths as d (queue, task, ready, scheduled, blocked, running, dead, oldest_ready_at,
                                         oldest_claimed_at)
        select n.queue, n.task, n.ready, n.scheduled, n.blocked, n.running, n.dead, n.oldest_ready_at, n.oldest_claimed_at
          from depths as n
        on conflict on constraint depths_one_row_a_task do update
           set ready = excluded.ready, scheduled = excluded.scheduled, blocked = excluded.blocked,
               running = excluded.running, dead = excluded.dead, oldest_ready_at = excluded.oldest_ready_at,
               oldest_claimed_at = excluded.oldest_claimed_at
         where (d.ready, d.scheduled, d.blocked, d.running, d.dead, d.oldest_ready_at, d.oldest_claimed_at)
               is distinct from (excluded.ready, excluded.scheduled, excluded.blocked, excluded.running, excluded.dead,
                                 excluded.oldest_ready_at, excluded.oldest_claimed_at)
    )
    select coalesce(bool_or(n.ready > 0 or n.running > 0), false) into moves from depths as n;
    delete from pgqueue.depths as d
     where d.ready + d.scheduled + d.blocked + d.running + d.dead = 0 and d.rolled_up = 0 and d.carried = 0;
    took := greatest(0, extract(epoch from clock_timestamp() - began_at));
    update pgqueue.depth_count as c
       set counted_at = began_at, seconds = took, next_id = ids, next_position = places, is_moving = moves;
    return took;
end $$;
comment on function pgqueue.count_depths() is
'Counts the jobs of each state by queue and task. Returns how many seconds it took; null: somebody else is at it, and nothing was done.';

-- Whether a count is due: 10 s after the last one, or when a minute has ended since, but never before twenty times what the last
-- one took; and not while nothing has changed, for it costs an idle database a scan. Called by upkeep. Locks: none.
create function pgqueue.depths_due()
returns boolean language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
    return (
        select c.counted_at > clock_timestamp()  -- before the clock was set back
            or c.counted_at + make_interval(secs => 21 * c.seconds) <= clock_timestamp()
               and (c.counted_at + interval '10 seconds' <= clock_timestamp()
                    or date_trunc('minute', c.counted_at) < date_trunc('minute', clock_timestamp()))
               and (c.is_moving
                    or c.next_id <> (select s.last_value + s.is_called::integer from pgqueue.job_ids as s)
                    or c.next_position <> (select s.last_value + s.is_called::integer from pgqueue.positions as s)
                    -- whatever else may have changed it, such as somebody's own delete
                    or c.counted_at + interval '10 minutes' <= clock_timestamp())
          from pgqueue.depth_count as c);
end $$;
comment on function pgqueue.depths_due() is 'Private. Whether the jobs should be counted again.';
