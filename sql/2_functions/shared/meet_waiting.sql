-- Does to a waiting job, whose unique key a new one wants, what `how` asks for. `job`: what the new one would have been.
-- Called by take_unique_key. Returns null when the job does not wait any more.
-- Locks: the job's row, until the end of the transaction: for key share when it is kept, so that many may keep one at
-- once, else for update; RowExclusive on ready_jobs for a ready one. Index: the primary keys.
--
-- A job that is locked is skipped by claim and promote, so it starts when it can see what this transaction has written.
-- A worker may have skipped it just now and be about to fall asleep. So a ready one is announced as by an enqueue, under
-- a lock that fall_asleep's look for writers finds.
create function pgqueue.meet_waiting(holder bigint, how jsonb, job jsonb)
returns text language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    policy constant text := coalesce(how ->> 'on_conflict', 'keep');
    new_args constant jsonb := job -> 'args';
    new_priority constant integer := (job ->> 'lane')::integer / 2;
    due timestamptz := (job ->> 'run_at')::timestamptz;
    outcome text := 'kept';
    is_ready boolean;
    held record;
    line text;
begin
    if policy in ('keep', 'follow_up') then
        perform from pgqueue.scheduled_jobs as s where s.id = holder for key share;
        if not found then
            lock table pgqueue.ready_jobs in row exclusive mode;
            select r.queue into line from pgqueue.ready_jobs as r where r.id = holder for key share;
            if not found then
                return null;
            end if;
            perform pgqueue.notify_sleepers(line, 1);
        end if;
        return 'kept';
    end if;
    select s.queue, s.run_at, s.created_at, s.lane into held from pgqueue.scheduled_jobs as s
     where s.id = holder for update;
    is_ready := not found;
    if is_ready then
        lock table pgqueue.ready_jobs in row exclusive mode;
        select r.queue, r.run_at, r.created_at, r.lane into held from pgqueue.ready_jobs as r
         where r.id = holder for update;
        if not found then
            return null;
        end if;
    end if;
    if policy in ('replace', 'debounce') then
        outcome := 'replaced';
        if new_args ? 'pgqueue.encrypted' and job ->> 'queue' <> held.queue then
            raise exception using errcode = 'PQ001',
                message = format('queue: job %s waits in queue %s, and encrypted args are sealed for queue %s', holder, held.queue, job ->> 'queue'),
                hint = 'Enqueue it to the queue of the job that it replaces.';
        end if;
        update pgqueue.scheduled_jobs as s set args = new_args where s.id = holder and s.args <> new_args;
        update pgqueue.ready_jobs as r set args = new_args where r.id = holder and r.args <> new_args;
    end if;
    if policy = 'raise_priority' and new_priority < held.lane / 2 then
        outcome := 'raised';
        update pgqueue.scheduled_jobs as s set lane = 2 * new_priority + s.lane % 2 where s.id = holder;
        update pgqueue.ready_jobs as r set lane = 2 * new_priority + r.lane % 2, position = default where r.id = holder;
    end if;
    if policy = 'debounce' then
        due := least(due, held.created_at + make_interval(secs => (how ->> 'max_delay')::double precision));
        -- The clock is read under the lock: no job is ever scheduled for the past (promotion relies on it).
        lock table pgqueue.scheduled_jobs in row exclusive mode;
        if due > greatest(held.run_at, clock_timestamp()) then
            outcome := 'postponed';
            update pgqueue.scheduled_jobs as s set run_at = due where s.id = holder;
            with moved as (
                delete from pgqueue.ready_jobs as r where r.id = holder
                returning r.id, r.created_at, r.lane, r.attempt, r.max_attempts, r.crashes, r.queue, r.task, r.args,
                          r.unique_key, r.options
            )
            insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task,
                                                args, unique_key, options)
            select m.id, due, m.created_at, m.lane | 1, m.attempt, m.max_attempts, m.crashes, m.queue, m.task, m.args,
                   m.unique_key, m.options
              from moved as m;
            perform pgqueue.wake_leader(due);
        end if;
    end if;
    if is_ready and outcome <> 'postponed' then
        perform pgqueue.notify_sleepers(held.queue, 1);
    end if;
    return outcome;
end $$;
comment on function pgqueue.meet_waiting(bigint, jsonb, jsonb) is
'Private. Keeps, replaces, postpones or raises a waiting job, and says which (kept, replaced, postponed, raised); null: it does not wait any more.';
