-- What falls due, on time: promotes, says when the leader looks again, and what is due by then.
-- Called by upkeep for the leader, and by the leader between its rounds. `hears`: whether it can be notified.
-- Locks: those of promote. Index: scheduled_jobs_due, schedules_due.
--
-- No job is overslept. (1) The next look is published, at once and for all to see; (2) who holds a lock for writing on
-- scheduled_jobs is read; (3) what is due is read, in a later snapshot. Who inserts a job and then reads the next look
-- (wake_leader) before (1) has either committed before (3) and is seen, or holds its lock at (2): then the leader looks
-- again within 250 ms. Who reads it after (1) notifies.
create function pgqueue.keep_time(pause_seconds double precision, hears boolean)
returns table (promoted integer, schedules_due boolean, next_seconds double precision)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    most constant integer := 1000;
    began_at constant timestamptz := clock_timestamp();
    next_look timestamptz;
    next_due timestamptz;
    schedule_due timestamptz;
    mark timestamptz;
    is_written boolean;
begin
    perform set_config('synchronous_commit', 'off', true);
    promoted := pgqueue.promote(most);
    next_look := clock_timestamp() + make_interval(secs => pgqueue.checked_seconds('pause_seconds', pause_seconds));
    perform pgqueue.publish_look(case when hears then next_look end);
    is_written := cardinality(pgqueue.writers('scheduled_jobs')) > 0;
    select f.proven_run_at into mark from pgqueue.floor_proofs as f
     where f.subject = 'scheduled_jobs' and f.proven_run_at <= clock_timestamp();
    select s.run_at into next_due from pgqueue.scheduled_jobs as s
     where s.run_at >= coalesce(mark, '-infinity') order by s.run_at limit 1;
    if next_due <= began_at and promoted < most then
        -- promote has skipped it, for somebody holds it, and would skip it again at once
        is_written := true;
        select s.run_at into next_due from pgqueue.scheduled_jobs as s
         where s.run_at > began_at order by s.run_at limit 1;
    end if;
    if is_written then
        next_due := least(next_due, clock_timestamp() + interval '250 milliseconds');
    end if;
    select s.due_at into schedule_due from pgqueue.schedules as s
     where s.paused_at is null and s.due_at < 'infinity' order by s.due_at limit 1;
    schedules_due := coalesce(schedule_due <= clock_timestamp(), false);
    next_due := least(next_due, schedule_due);
    if next_due < next_look then
        next_look := next_due;
        perform pgqueue.publish_look(case when hears then next_look end);
    end if;
    next_seconds := greatest(0, extract(epoch from greatest(next_look, '2000-01-01') - clock_timestamp()));
    return next;
end $$;
comment on function pgqueue.keep_time(double precision, boolean) is
'Makes up to 1,000 due jobs ready; returns how many, whether schedules are due, and in how many seconds, at most pause_seconds, to look again.';

-- Called by keep_time and resign. Locks: none.
create function pgqueue.publish_look(next_look timestamptz)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform setval('pgqueue.next_look', greatest(1, coalesce(
        extract(epoch from greatest(publish_look.next_look, '2000-01-01')) * 1000, 1)::bigint));
end $$;
comment on function pgqueue.publish_look(timestamptz) is 'Private. Says when the leader looks at times again; null: it cannot be notified.';
