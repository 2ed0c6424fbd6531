-- Gives the turn to the jobs that waited for jobs which have ended: each takes the key, and becomes ready or scheduled.
-- Called by free_keys, which has just deleted the keys, so that nobody else has them and nothing is waited for; by
-- take_unique_key; by unblock_stranded. Locks: the jobs' rows (skip locked), their keys. Index: blocked_jobs_one_follow_up_a_job.
create function pgqueue.unblock(ended bigint[])
returns integer language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    follower record;
    lines text[];
    later timestamptz;
    unblocked integer := 0;
begin
    for follower in
        select b.id, b.after_id, b.task, b.unique_key, b.queue from pgqueue.blocked_jobs as b
         where b.after_id = any (ended) order by b.id for update skip locked
    loop
        perform from pgqueue.unique_keys as k
          where k.kind = 'unique' and k.task = follower.task and k.key = follower.unique_key
            and k.job_id = follower.after_id for update;
        if found then
            continue when pgqueue.unfinished_as(follower.after_id) is not null;  -- a replay has brought it back
            update pgqueue.unique_keys as k set job_id = follower.id
             where k.kind = 'unique' and k.task = follower.task and k.key = follower.unique_key;
        else
            insert into pgqueue.unique_keys (kind, task, key, job_id)
            values ('unique', follower.task, follower.unique_key, follower.id)
            on conflict (kind, task, key) do nothing;
        end if;
        if not found then
            -- Somebody came first, and has the key: then after that one. If a job waits for it already, the next round looks.
            update pgqueue.blocked_jobs as b set after_id = k.job_id
              from pgqueue.unique_keys as k
             where b.id = follower.id and k.kind = 'unique' and k.task = follower.task and k.key = follower.unique_key
               and not exists (select from pgqueue.blocked_jobs as o where o.after_id = k.job_id);
            continue;
        end if;
        with gone as (
            delete from pgqueue.blocked_jobs as b where b.id = follower.id
            returning b.id, b.run_at, b.created_at, b.lane, b.attempt, b.max_attempts, b.crashes, b.queue, b.task, b.args,
                      b.unique_key, b.options, clock_timestamp() as seen_at  -- under the locks: see enqueue
        ), early as (
            insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                                args, unique_key, options)
            select g.id, g.run_at, g.created_at, g.lane, g.attempt, g.max_attempts, g.crashes, g.queue, g.task, g.args,
                   g.unique_key, g.options
              from gone as g where g.run_at > g.seen_at
            returning run_at
        ), due as (
            insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                            args, unique_key, options)
            select g.id, g.seen_at, g.created_at, g.lane, g.attempt, g.max_attempts, g.crashes, g.queue, g.task, g.args,
                   g.unique_key, g.options
              from gone as g where g.run_at <= g.seen_at
            returning queue
        )
        select array_agg(d.queue), (select e.run_at from early as e) into lines, later from due as d;
        if later is not null then
            perform pgqueue.wake_leader(later);
        end if;
        if lines is not null then
            perform pgqueue.notify_sleepers(follower.queue, 1);
        end if;
        unblocked := unblocked + 1;
    end loop;
    return unblocked;
end $$;
comment on function pgqueue.unblock(bigint[]) is
'Private. Makes the jobs ready, or scheduled, that waited for the end of these. Returns how many.';

-- The same for jobs whose predecessor ended before they were committed: its ending could not see them.
-- Called by the leader of upkeep, every round. It waits no longer than a moment for a key that somebody is taking.
-- Locks: those of unblock. Reads blocked_jobs whole: it holds one job a running job at the most.
create function pgqueue.unblock_stranded()
returns integer language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set lock_timeout = '100ms'
as $$
declare
    stranded bigint;
    unblocked integer := 0;
begin
    for stranded in
        select b.after_id from pgqueue.blocked_jobs as b
         where not exists (select from pgqueue.running_jobs as r where r.id = b.after_id)
           and not exists (select from pgqueue.scheduled_jobs as s where s.id = b.after_id)
           and not exists (select from pgqueue.ready_jobs as w where w.id = b.after_id)
         order by b.id limit 100
    loop
        begin
            unblocked := unblocked + pgqueue.unblock(array[stranded]);
        exception when lock_not_available or unique_violation then
            null;  -- a producer is about to take the key: the next round sees what came of it
        end;
    end loop;
    return unblocked;
end $$;
comment on function pgqueue.unblock_stranded() is
'Private. Unblocks jobs whose predecessor is no longer unfinished. Returns how many.';
