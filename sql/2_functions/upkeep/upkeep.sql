-- One call a round: heartbeat, safety look, and for the leader rescue and promotion.
-- Called by every supervisor every few seconds. Leadership is a transaction lock inside this call and a row that says
-- when the last round was: nobody who is stopped, cut off or killed keeps it, and it works through any pooler.
-- Correctness never rests on it: rescue locks the worker's row, promote skips locked rows.
-- Locks: one advisory transaction lock, and those of rescue and promote. A duty that fails is reported in `problems`
-- and stops no other.
create function pgqueue.upkeep(
    supervisor_id bigint, worker_ids bigint[], queues text[], round_seconds double precision, overdue_seconds double precision,
    hears boolean
) returns table (missing bigint[], look boolean, led boolean, rescued integer, promoted integer, schedules_due boolean,
                 floors_due boolean, retain_due boolean, next_seconds double precision, problems text[],
                 rescued_workers bigint[], depths_due boolean, rollup_due boolean, queue_settings jsonb, stopping bigint[], history_pages bigint,
                 resumed_at timestamptz)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    round_at constant timestamptz := clock_timestamp();
    last pgqueue.leadership;
    is_overdue boolean;
    worker record;
    taken integer;
    kept_at timestamptz;
    patience constant text := current_setting('lock_timeout');
begin
    if upkeep.supervisor_id is null then
        perform pgqueue.reject_range('supervisor_id', null, 'The number by which the supervisor registers its workers.');
    end if;
    perform pgqueue.checked_seconds('round_seconds', round_seconds), pgqueue.checked_seconds('overdue_seconds', overdue_seconds);
    perform set_config('synchronous_commit', 'off', true);
    -- One that another supervisor has registered is ours no more: a database that came back in an earlier state gives ids again.
    missing := pgqueue.heartbeat(upkeep.worker_ids) || array(
        select w.id from pgqueue.workers as w
         where w.id = any (upkeep.worker_ids) and w.supervisor_id <> upkeep.supervisor_id);
    problems := '{}';
    rescued := 0;
    rescued_workers := '{}';
    promoted := 0;
    schedules_due := false;
    floors_due := false;
    retain_due := false;
    depths_due := false;
    rollup_due := false;
    history_pages := 0;
    led := false;
    loop  -- twice at the most: the second look is under the lock, for somebody may have led since the first
        select * into last from pgqueue.leadership;
        -- a round in the future was led before the server's clock was set back
        is_overdue := last.led_at not between round_at - make_interval(secs => overdue_seconds)
                                          and round_at + make_interval(secs => overdue_seconds);
        if not (is_overdue or last.supervisor_id in (0, upkeep.supervisor_id)) then  -- 0: nobody yet, or it has resigned
            led := false;
            exit;
        end if;
        exit when led;
        led := pg_try_advisory_xact_lock(hashtextextended('pgqueue.upkeep', 0));
        exit when not led;
    end loop;
    if led then
        -- After a gap in which no round was led (the database or the whole fleet was away) nobody could beat:
        -- leases count from now. So they do when the server recovered: from a crash, or as the standby that was promoted, on which
        -- no session holds its lock, and which may have been running for months.
        if last.led_at < round_at - make_interval(secs => 2.5 * overdue_seconds)
           or not exists (select from pgqueue.recovery_seen)
        then
            last.resumed_at := round_at;
            delete from pgqueue.recovery_seen;
            insert into pgqueue.recovery_seen (seen_at) values (round_at);
        end if;
        update pgqueue.leadership as l
           set supervisor_id = upkeep.supervisor_id, led_at = round_at, resumed_at = last.resumed_at
         where l.supervisor_id <> upkeep.supervisor_id or l.resumed_at <> last.resumed_at or is_overdue
            or l.led_at < round_at - make_interval(secs => overdue_seconds / 4);  -- seldom: see heartbeat
        for worker in
            select w.id, w.supervisor_id, w.session_lock, h.beat_at,
                   greatest(h.beat_at, last.resumed_at, pg_postmaster_start_time()) < round_at - w.lease as is_late
              from pgqueue.workers as w join pgqueue.heartbeats as h on h.worker_id = w.id
             where greatest(h.beat_at, last.resumed_at, pg_postmaster_start_time())
                   < round_at - least(w.lease, make_interval(secs => 1.25 * overdue_seconds))
        loop
            begin
                -- It may have beaten since this loop began, which waits for locks: judged is the beat that we hold.
                perform from pgqueue.heartbeats as h
                  where h.worker_id = worker.id and h.beat_at = worker.beat_at for update skip locked;
                continue when not found;
                -- A lock that is free says that the supervisor's session is gone; one that is held says nothing,
                -- and our own could be taken a second time.
                if worker.is_late
                   or worker.session_lock and worker.supervisor_id <> upkeep.supervisor_id
                      and pg_try_advisory_xact_lock(worker.supervisor_id)
                then
                    -- A transaction of that worker may hold the lock of a job that it was completing, for as long as its
                    -- process stands still: nothing else waits for that, and the next round tries again.
                    perform set_config('lock_timeout', '200ms', true);
                    taken := pgqueue.rescue(worker.id);
                    perform set_config('lock_timeout', patience, true);
                    if taken > 0 then  -- by us, and not by its own supervisor in the same moment
                        rescued := rescued + taken;
                        rescued_workers := rescued_workers || worker.id;
                    end if;
                end if;
            exception when others then
                problems := problems || format('rescue of worker %s: %s', worker.id, sqlerrm);
            end;
        end loop;
        begin
            select t.promoted, t.schedules_due, t.next_seconds into promoted, schedules_due, next_seconds
              from pgqueue.keep_time(round_seconds, hears) as t;
        exception when others then
            next_seconds := round_seconds;
            problems := problems || format('promote: %s', sqlerrm);
        end;
        kept_at := clock_timestamp();
        begin
            if exists (select from pgqueue.blocked_jobs) then
                perform pgqueue.unblock_stranded();
            end if;
        exception when others then
            problems := problems || format('unblock: %s', sqlerrm);
        end;
        begin
            if exists (select from pgqueue.queues as q where q.resumes_at <= clock_timestamp()) then
                perform pgqueue.resume_due();
            end if;
        exception when others then
            problems := problems || format('resume: %s', sqlerrm);
        end;
        delete from pgqueue.sleepers as s
         using (select distinct q.queue from pgqueue.workers as w cross join unnest(w.queues) as q (queue)) as line
         where s.queue = line.queue and s.period > now() - interval '10 minutes' and s.period < now() - interval '35 seconds';
        delete from pgqueue.stop_requests as s
         where not exists (select from pgqueue.workers as w where w.id = s.worker_id);
        delete from pgqueue.waiters as w
         where w.period > now() - interval '10 minutes' and w.period < now() - interval '1 minute';
        -- of jobs that completed first
        delete from pgqueue.cancel_requests as c
         where c.requested_at < clock_timestamp() - interval '1 minute'
           -- a look-up each, never a join with all that runs
           and (select r.id from pgqueue.running_jobs as r where r.id = c.job_id and r.lease = c.lease limit 1) is null;
        -- A floor is due when positions were drawn since its proof began, or it has not come up to that proof.
        floors_due := not exists (
            select from pgqueue.floor_proofs as f, pgqueue.positions as p
             where f.subject = 'ready_jobs' and f.next_position = p.last_value + p.is_called::integer
               and f.server_started_at = pg_postmaster_start_time()
               and not exists (select from pgqueue.lane_floors as l where f.next_position > any (l.floors))
               and not exists (select from unnest(upkeep.queues) as q (queue)
                                where not exists (select from pgqueue.lane_floors as l where l.queue = q.queue)));
        retain_due := to_regclass('pgqueue.finished_jobs' || to_char((now() at time zone 'UTC')::date + 7, '_YYYYMMDD')) is null
            or exists (select from pgqueue.unique_keys as k where k.expires_at < now())
            or exists (select from pgqueue.job_steps as s where s.recorded_at < now() - interval '1 day')
            or pgqueue.retention_due();
        depths_due := pgqueue.depths_due();
        history_pages := coalesce(pg_relation_size(to_regclass('pgqueue.finished_jobs' || to_char(round_at at time zone 'UTC', '_YYYYMMDD'))), 0)
            / current_setting('block_size')::bigint;
        rollup_due := exists (select from pgqueue.rollup_progress as p
                               where p.rolled_up_to + interval '1 minute' <= clock_timestamp());
    end if;
    resumed_at := last.resumed_at;
    queue_settings := pgqueue.queue_settings(upkeep.queues);
    stopping := array(select s.worker_id from pgqueue.stop_requests as s where s.worker_id = any (upkeep.worker_ids));
    -- The safety look: a ready job older than 1 s in a queue of ours, whatever happened to the hint.
    begin
        look := exists (
            select from unnest(upkeep.queues) as q (queue)
             where not exists (select from pgqueue.queues as p where p.name = q.queue and p.paused_at is not null)
               and exists (
                   select from unnest(coalesce((select f.floors from pgqueue.lane_floors as f where f.queue = q.queue),
                                               array_fill(0::bigint, array[20]))) with ordinality as c (floor, number)
                    cross join lateral (
                        select r.run_at from pgqueue.ready_jobs as r
                         where r.queue = q.queue and r.lane = c.number - 1 and r.position >= c.floor
                         order by r.position limit 1) as first
                    where first.run_at < round_at - interval '1 second'));
    exception when others then
        look := true;
        problems := problems || format('look: %s', sqlerrm);
    end;
    if led then
        next_seconds := greatest(0, next_seconds - extract(epoch from clock_timestamp() - kept_at));
    elsif is_overdue then  -- and somebody is at it
        next_seconds := 0.1 * overdue_seconds;
    else
        -- When a round is overdue, and not before: whatever befalls the leader, the next round is led in time.
        next_seconds := greatest(0, extract(epoch from least(last.led_at, clock_timestamp()) - clock_timestamp())
                                    + overdue_seconds * (1.12 + 0.05 * random()));
    end if;
    return next;
end $$;
comment on function pgqueue.upkeep(bigint, bigint[], text[], double precision, double precision, boolean) is
'A round of upkeep. Beats for the workers; returns those registered no more (missing), whether a ready job has waited for over 1 s in one of the queues (look), whether this call led, and what it did; when to come back; problems; the workers whose jobs it took back; what operators have set for the queues (queue_settings), which of the workers they want to stop, and how many blocks of history today has (history_pages), and since when rounds are led without a gap or a recovery of the server (resumed_at).';
