-- Rolls up the minutes that are over into minutes, hours, days and the last hour, and groups their failures. Called by the
-- leader when a minute has ended; after a while without a leader it catches up, a fifth of a second's work in each call.
-- Locks: an advisory one, shared with count_depths, row exclusive on its own tables; it waits for nobody.
-- Index: finished_jobs_by_id (its second column), job_failures_by_time; the state tables are not read.
--
-- Every ending is counted once. A minute is rolled up when every ending in it is there to be read, by the rule of
-- producer/events.sql: (1) read the clock, (2) in a later statement, who is about to end jobs; once those have ended, (3) in a
-- new snapshot, what ended before (1). A transaction that ends jobs and stays open holds the roll-up back. How far it has
-- come is written in the same transaction. A clock that is set back hides what ends until it has come up again.
create function pgqueue.roll_up()
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set timezone = 'UTC' set plan_cache_mode = force_custom_plan
set max_parallel_workers_per_gather = 0 set enable_seqscan = off
as $$
declare
    began_at constant timestamptz := clock_timestamp();
    progress pgqueue.rollup_progress;
    closed_at timestamptz;
    step interval;
    minutes integer := 0;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using errcode = 'PQ001', message = 'roll_up needs READ COMMITTED',
            hint = 'Each of its statements must have a snapshot of its own.';
    end if;
    perform set_config('synchronous_commit', 'off', true);
    if not pg_try_advisory_xact_lock(hashtextextended('pgqueue.figures', 0)) then
        return 0;
    end if;
    select * into progress from pgqueue.rollup_progress;
    if not isfinite(progress.rolled_up_to) then
        progress.rolled_up_to := date_trunc('minute', began_at);  -- the first time: what was before is history
    end if;
    if progress.server_started_at <> pg_postmaster_start_time() then
        progress.next_to := null;  -- a prepared transaction changes its name with a start
        progress.server_started_at := pg_postmaster_start_time();
    end if;
    if cardinality(pgqueue.endings_under_way(progress.writers)) = 0 then
        progress.proven_to := greatest(progress.proven_to, progress.next_to);
        progress.next_to := null;
    end if;
    if progress.next_to is null and progress.proven_to < progress.rolled_up_to + interval '1 minute' then
        progress.next_to := clock_timestamp();
        progress.writers := pgqueue.endings_under_way();
        if cardinality(progress.writers) = 0 then
            progress.proven_to := greatest(progress.proven_to, progress.next_to);
            progress.next_to := null;
        end if;
    end if;
    closed_at := date_trunc('minute', progress.proven_to);
    while progress.rolled_up_to < closed_at and (minutes = 0 or clock_timestamp() < began_at + interval '200 milliseconds') loop
        step := interval '1 minute';
        if progress.rolled_up_to = date_trunc('hour', progress.rolled_up_to)
           and progress.rolled_up_to + interval '1 hour' <= closed_at
           and not pgqueue.has_endings(progress.rolled_up_to, progress.rolled_up_to + interval '1 hour')
        then
            step := interval '1 hour';
        else
            perform pgqueue.roll_up_minute(progress.rolled_up_to,
                                           is_behind => progress.rolled_up_to + interval '1 minute' < closed_at);
        end if;
        progress.rolled_up_to := progress.rolled_up_to + step;
        minutes := minutes + (extract(epoch from step) / 60)::integer;
    end loop;
    if minutes > 0 then
        delete from pgqueue.rollups as r where r.period = 'last_hour';
        perform pgqueue.merge_rollups('last_hour', progress.rolled_up_to - interval '1 hour', k.period,
                                      progress.rolled_up_to - interval '1 hour', progress.rolled_up_to, by_queue => k.whole)
           from (values ('minute', false), ('last_hour', true)) as k (period, whole);
        delete from pgqueue.rollups as r
         where r.ctid = any (array(
             select o.ctid
               from (values ('minute', interval '2 days'), ('hour', interval '100 days')) as k (period, age)
              cross join lateral (select e.ctid from pgqueue.rollups as e
                                   where e.period = k.period and e.bucket_at < progress.rolled_up_to - k.age
                                   order by e.bucket_at limit 1000) as o));
        if minutes > 1 or progress.rolled_up_to = date_trunc('hour', progress.rolled_up_to) then
            delete from pgqueue.failure_groups as g
             where g.ctid = any (array(select e.ctid from pgqueue.failure_groups as e
                                        where e.last_seen_at < progress.rolled_up_to - interval '100 days' limit 1000));
        end if;
    end if;
    update pgqueue.rollup_progress as p
       set rolled_up_to = progress.rolled_up_to, proven_to = progress.proven_to, next_to = progress.next_to,
           writers = progress.writers, server_started_at = progress.server_started_at
     where p is distinct from progress;
    return minutes;
end $$;
comment on function pgqueue.roll_up() is
'Rolls up the minutes that are over, and returns how many; 0: none is, an ending of one is under way, or somebody else is at it.';

-- Whether jobs or attempts have ended in a span of an hour at the most. Called by roll_up. Locks: none.
-- Index: finished_jobs_by_id, job_failures_by_time.
create function pgqueue.has_endings(from_at timestamptz, to_at timestamptz)
returns boolean language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_custom_plan
as $$
declare
    days constant date[] := pgqueue.history_days(from_at);
begin
    return exists (select from pgqueue.finished_jobs as f
                    where f.day = any (days) and f.finished_at >= has_endings.from_at and f.finished_at < has_endings.to_at)
        or exists (select from pgqueue.job_failures as f
                    where f.day = any (days) and f.failed_at >= has_endings.from_at and f.failed_at < has_endings.to_at);
end $$;
comment on function pgqueue.has_endings(timestamptz, timestamptz) is 'Private. Whether any job or attempt has ended in this span of time.';

-- The partitions that keep the endings of a UTC hour: an ending finds its partition a moment before it draws its time.
-- Called by has_endings, roll_up_minute. Locks: none. Index: none.
create function pgqueue.history_days(from_at timestamptz)
returns date[] language sql immutable
return array[(from_at at time zone 'UTC')::date - 1, (from_at at time zone 'UTC')::date, date '-infinity'];
comment on function pgqueue.history_days(timestamptz) is 'Private. The days by which the endings after a time and in its UTC hour are stored.';

-- Rolls up one minute, adds it to its hour and its day, and groups its failures. Called by roll_up. Locks: as roll_up.
-- Index: finished_jobs_by_id, job_failures_by_time, job_failures_by_job. `is_behind`: more minutes are to follow at once.
-- A worker at full speed ends millions of jobs in a minute. So they are gone through twice, once to be counted and added up, and
-- once for the histograms, where of many of a task a sample is enough, chosen by a hash of the id; each time by hashing, for to
-- sort them would take as long as all the rest.
--
-- enqueued is what must have come: the change of depth since the last minute, and what has ended. The depth is counted a moment
-- after the minute, and jobs that end in between are missing from it; so a minute can seem to have lost jobs, and gives them
-- to the next one (carried), but no further: what somebody has deleted was never carried anywhere.
create function pgqueue.roll_up_minute(minute_at timestamptz, is_behind boolean)
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set timezone = 'UTC' set plan_cache_mode = force_custom_plan
set max_parallel_workers_per_gather = 0 set enable_seqscan = off set enable_sort = off
as $$
declare
    days constant date[] := pgqueue.history_days(minute_at);
    next_at constant timestamptz := minute_at + interval '1 minute';
    failed_attempts bigint;
    cancelled_jobs bigint;
begin
    with counted as materialized (
        select f.queue, f.task, f.state, count(*) as jobs, count(f.worker_id) as claimed,
               sum(greatest(0, date_part('epoch', f.claimed_at - f.run_at))) as waited,
               sum(greatest(0, date_part('epoch', f.finished_at - f.claimed_at))) as ran
          from pgqueue.finished_jobs as f
         where f.day = any (days) and f.finished_at >= minute_at and f.finished_at < next_at
         group by f.queue, f.task, f.state
    ), ends as materialized (  -- the mask lets between 20,000 and 40,000 of many jobs through
        select c.queue, c.task, sum(c.jobs * s.is_completed)::bigint as completed,
               sum(c.jobs * (1 - s.is_completed))::bigint as cancelled, sum(c.claimed * (1 - s.is_completed))::bigint as claimed,
               coalesce(sum(c.waited) filter (where c.state = 'completed'), 0) as waited,
               coalesce(sum(c.ran) filter (where c.state = 'completed'), 0) as ran,
               (2 ^ greatest(0, floor(log(2, greatest(1, sum(c.jobs * s.is_completed)) / 20000)))::integer)::integer - 1 as mask
          from counted as c cross join lateral (select (c.state = 'completed')::integer as is_completed) as s
         group by c.queue, c.task
    ), ended as materialized (  -- a row for each pair of buckets
        select f.queue, f.task, pgqueue.bucket(date_part('epoch', f.claimed_at - f.run_at)) as wait_bucket,
               pgqueue.bucket(date_part('epoch', f.finished_at - f.claimed_at)) as run_bucket, count(*) * (e.mask + 1) as jobs
          from ends as e
          join pgqueue.finished_jobs as f on f.queue = e.queue and f.task = e.task and hashint8(f.id) & e.mask = 0
         where f.day = any (days) and f.finished_at >= minute_at and f.finished_at < next_at and f.state = 'completed'
         group by f.queue, f.task, e.mask, pgqueue.bucket(date_part('epoch', f.claimed_at - f.run_at)),
                  pgqueue.bucket(date_part('epoch', f.finished_at - f.claimed_at))
    ), targets as (
        select f.queue, f.task, count(*) as targeted,
               count(*) filter (where date_part('epoch', f.claimed_at - f.run_at) <= q.target_wait) as in_target
          from pgqueue.queues as q
          join pgqueue.finished_jobs as f on f.queue = q.name
         where f.day = any (days) and f.finished_at >= minute_at and f.finished_at < next_at and f.state = 'completed'
           and q.target_wait is not null and exists (select from pgqueue.queues as t where t.target_wait is not null)
         group by f.queue, f.task
    ), were_dead as (  -- a dead letter that was cancelled ended before; its death is counted where it belongs
        select f.queue, f.task, count(*) as jobs
          from pgqueue.finished_jobs as f
         where f.day = any (days) and f.finished_at >= minute_at and f.finished_at < next_at
           and f.state = 'cancelled' and f.worker_id is not null and exists (select from ends as e where e.claimed > 0)
           and (f.reason = 'discarded'
                or exists (select from pgqueue.job_failures as d
                            where d.job_id = f.id and d.dead_reason is not null and d.failed_at >= f.claimed_at))
         group by f.queue, f.task
    ), waits as (
        select b.queue, b.task, array_agg(b.bucket order by b.bucket) as buckets, array_agg(b.jobs order by b.bucket) as counts
          from (select e.queue, e.task, e.wait_bucket as bucket, sum(e.jobs)::bigint as jobs from ended as e
                 group by e.queue, e.task, e.wait_bucket) as b
         group by b.queue, b.task
    ), runs as (
        select b.queue, b.task, array_agg(b.bucket order by b.bucket) as buckets, array_agg(b.jobs order by b.bucket) as counts
          from (select e.queue, e.task, e.run_bucket as bucket, sum(e.jobs)::bigint as jobs from ended as e
                 group by e.queue, e.task, e.run_bucket) as b
         group by b.queue, b.task
    ), failures as (
        select f.queue, f.task, count(*) as failed, count(f.dead_reason) as dead from pgqueue.job_failures as f
         where f.day = any (days) and f.failed_at >= minute_at and f.failed_at < next_at
         group by f.queue, f.task
    ), lines as (
        select queue, task, coalesce(e.completed, 0) as completed, coalesce(e.cancelled, 0) as cancelled,
               coalesce(f.failed, 0) as failed, coalesce(f.dead, 0) as dead, coalesce(t.targeted, 0) as targeted,
               coalesce(t.in_target, 0) as in_target, coalesce(e.waited, 0) as waited, coalesce(e.ran, 0) as ran,
               coalesce(d.ready + d.scheduled + d.blocked + d.running, 0) as depth, coalesce(d.rolled_up, 0) as rolled_up,
               coalesce(d.carried, 0) as carried,
               coalesce(d.ready + d.scheduled + d.blocked + d.running - d.rolled_up, 0) + coalesce(e.completed, 0)
                   + coalesce(e.cancelled, 0) - coalesce(g.jobs, 0) + coalesce(f.dead, 0) as came
          from ends as e
          full join failures as f using (queue, task)
          full join pgqueue.depths as d using (queue, task)
          left join targets as t using (queue, task)
          left join were_dead as g using (queue, task)
    ), moved as materialized (
        select l.* from lines as l
         where l.completed + l.cancelled + l.failed + l.depth + l.rolled_up > 0 or l.carried <> 0
    ), marked as (
        update pgqueue.depths as d
           set rolled_up = m.depth,
               carried = least(0, case when roll_up_minute.is_behind then m.came + m.carried else m.came end)
          from moved as m where d.queue = m.queue and d.task = m.task
    ), written as (
        insert into pgqueue.rollups (period, bucket_at, queue, task, enqueued, completed, cancelled, failed, dead, depth,
                                     targeted, in_target, wait_seconds, run_seconds, wait_buckets, wait_counts,
                                     run_buckets, run_counts)
        select 'minute', minute_at, m.queue, m.task, greatest(0, m.came + m.carried), m.completed, m.cancelled, m.failed,
               m.dead, m.depth, m.targeted, m.in_target, m.waited, m.ran, coalesce(w.buckets, '{}'),
               coalesce(w.counts, '{}'), coalesce(r.buckets, '{}'), coalesce(r.counts, '{}')
          from moved as m
          left join waits as w on w.queue = m.queue and w.task = m.task
          left join runs as r on r.queue = m.queue and r.task = m.task
         where m.completed + m.cancelled + m.failed + m.depth + m.rolled_up > 0
    )
    select sum(m.failed), sum(m.cancelled) into failed_attempts, cancelled_jobs from moved as m;
    if failed_attempts is null then
        return;
    end if;
    perform pgqueue.merge_rollups('hour', date_trunc('hour', minute_at), 'minute', minute_at, next_at);
    perform pgqueue.merge_rollups('day', date_trunc('day', minute_at), 'minute', minute_at, next_at);
    if cancelled_jobs > 0 then  -- by whom a count may have been told before they were committed
        update pgqueue.depth_count as c set is_moving = true where not c.is_moving;
    end if;
    if failed_attempts > 0 then
        with failures as materialized (
            select coalesce(f.fingerprint, f.error) as fingerprint, f.queue, f.task, f.error, left(f.message, 1000) as message,
                   f.job_id, f.failed_at, f.dead_reason
              from pgqueue.job_failures as f
             where f.day = any (days) and f.failed_at >= minute_at and f.failed_at < next_at
        ), latest as (
            select distinct on (f.fingerprint, f.queue, f.task) f.fingerprint, f.queue, f.task, f.error, f.message, f.job_id
              from failures as f order by f.fingerprint, f.queue, f.task, f.failed_at desc, f.job_id desc
        ), counted as (
            select f.fingerprint, f.queue, f.task, min(f.failed_at) as first_seen_at, max(f.failed_at) as last_seen_at,
                   count(*) as failures, count(f.dead_reason) as dead
              from failures as f group by f.fingerprint, f.queue, f.task
        )
        insert into pgqueue.failure_groups as g (fingerprint, queue, task, error, message, job_id, first_seen_at,
                                                 last_seen_at, failures, dead)
        select c.fingerprint, c.queue, c.task, l.error, l.message, l.job_id, c.first_seen_at, c.last_seen_at, c.failures,
               c.dead
          from counted as c
          join latest as l on l.fingerprint = c.fingerprint and l.queue = c.queue and l.task = c.task
        on conflict on constraint failure_groups_one_row_a_cause_and_task do update
           set error = excluded.error, message = excluded.message, job_id = excluded.job_id,
               last_seen_at = excluded.last_seen_at, failures = g.failures + excluded.failures,
               dead = g.dead + excluded.dead;
    end if;
end $$;
comment on function pgqueue.roll_up_minute(timestamptz, boolean) is 'Private. Rolls up the minute that begins at `minute_at`; once, or it is counted twice.';

-- Adds rollups up: those of a span, and what is there already of an hour or day. Called by roll_up and roll_up_minute.
-- Locks: row exclusive on rollups. Index: rollups_one_row_a_bucket_and_task.
create function pgqueue.merge_rollups(
    period text, bucket_at timestamptz, of_period text, from_at timestamptz, to_at timestamptz, by_queue boolean default false
) returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan set enable_seqscan = off
as $$
declare
    own_period constant text := merge_rollups.period;  -- not to be taken for columns
    own_at constant timestamptz := merge_rollups.bucket_at;
begin
    with added as materialized (
        select r.queue, case when by_queue then '' else r.task end as task, r.bucket_at, r.task as of_task, r.enqueued,
               r.completed, r.cancelled, r.failed, r.dead, r.depth, r.targeted, r.in_target, r.wait_seconds, r.run_seconds,
               r.wait_buckets, r.wait_counts, r.run_buckets, r.run_counts
          from pgqueue.rollups as r
         where r.period = of_period and r.bucket_at >= from_at and r.bucket_at < to_at
    ), parts as materialized (
        select a.* from added as a
        union all
        select r.queue, r.task, '-infinity', r.task, r.enqueued, r.completed, r.cancelled, r.failed, r.dead, r.depth,
               r.targeted, r.in_target, r.wait_seconds, r.run_seconds, r.wait_buckets, r.wait_counts, r.run_buckets,
               r.run_counts
          from pgqueue.rollups as r
         where r.period = own_period and r.bucket_at = own_at and own_period <> 'last_hour'
           and exists (select from added as a where a.queue = r.queue and a.task = r.task)
    ), latest as (
        select distinct on (p.queue, p.of_task) p.queue, p.task, p.depth from parts as p
         order by p.queue, p.of_task, p.bucket_at desc
    ), depths as (
        select l.queue, l.task, sum(l.depth)::bigint as depth from latest as l group by l.queue, l.task
    ), sums as (
        select p.queue, p.task, sum(p.enqueued)::bigint as enqueued, sum(p.completed)::bigint as completed,
               sum(p.cancelled)::bigint as cancelled, sum(p.failed)::bigint as failed, sum(p.dead)::bigint as dead,
               sum(p.targeted)::bigint as targeted, sum(p.in_target)::bigint as in_target,
               sum(p.wait_seconds) as wait_seconds, sum(p.run_seconds) as run_seconds
          from parts as p group by p.queue, p.task
    ), waits as (
        select b.queue, b.task, array_agg(b.bucket order by b.bucket) as buckets, array_agg(b.jobs order by b.bucket) as counts
          from (select p.queue, p.task, h.bucket, sum(h.jobs)::bigint as jobs
                  from parts as p cross join unnest(p.wait_buckets, p.wait_counts) as h (bucket, jobs)
                 group by p.queue, p.task, h.bucket) as b
         group by b.queue, b.task
    ), runs as (
        select b.queue, b.task, array_agg(b.bucket order by b.bucket) as buckets, array_agg(b.jobs order by b.bucket) as counts
          from (select p.queue, p.task, h.bucket, sum(h.jobs)::bigint as jobs
                  from parts as p cross join unnest(p.run_buckets, p.run_counts) as h (bucket, jobs)
                 group by p.queue, p.task, h.bucket) as b
         group by b.queue, b.task
    )
    insert into pgqueue.rollups as r (period, bucket_at, queue, task, enqueued, completed, cancelled, failed, dead, depth,
                                      targeted, in_target, wait_seconds, run_seconds, wait_buckets, wait_counts,
                                      run_buckets, run_counts)
    select own_period, own_at, s.queue, s.task, s.enqueued, s.completed, s.cancelled, s.failed, s.dead, d.depth, s.targeted,
           s.in_target, s.wait_seconds, s.run_seconds, coalesce(w.buckets, '{}'), coalesce(w.counts, '{}'),
           coalesce(n.buckets, '{}'), coalesce(n.counts, '{}')
      from sums as s
      join depths as d on d.queue = s.queue and d.task = s.task
      left join waits as w on w.queue = s.queue and w.task = s.task
      left join runs as n on n.queue = s.queue and n.task = s.task
    on conflict on constraint rollups_one_row_a_bucket_and_task do update
       set enqueued = excluded.enqueued, completed = excluded.completed, cancelled = excluded.cancelled,
           failed = excluded.failed, dead = excluded.dead, depth = excluded.depth, targeted = excluded.targeted,
           in_target = excluded.in_target, wait_seconds = excluded.wait_seconds, run_seconds = excluded.run_seconds,
           wait_buckets = excluded.wait_buckets, wait_counts = excluded.wait_counts, run_buckets = excluded.run_buckets,
           run_counts = excluded.run_counts;
end $$;
comment on function pgqueue.merge_rollups(text, timestamptz, text, timestamptz, timestamptz, boolean) is
'Private. Adds the rollups of a span to those of an hour or day, or makes those of the last hour of them, by task or by queue.';
