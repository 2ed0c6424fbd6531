-- Falling asleep without losing a wake-up. The worker (1) registers as a sleeper and commits, (2) reads in a new
-- statement who holds a lock for writing on ready_jobs: only such an enqueuer may have read `sleepers` before (1) and
-- have yet to commit, (3) looks for jobs, with pauses that grow to 250 ms, until those have ended, and once more after
-- the test that found them gone. Then, and only then, it relies on the NOTIFY.
-- Comparing pg_snapshot_xmin with an xmax instead loses wake-ups: a running producer's xid can equal it.

-- (1) Called by workers, at most 5 times a second. Locks: the worker's rows of sleepers.
create function pgqueue.fall_asleep(worker_id bigint, queues text[])
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
begin
    perform set_config('synchronous_commit', 'off', true);
    insert into pgqueue.sleepers (queue, period, worker_id, slept_at)
    select q.queue, date_bin('10 seconds', clock_timestamp(), '2000-01-01'), fall_asleep.worker_id, clock_timestamp()
      from unnest(fall_asleep.queues) as q (queue)
     where q.queue is not null and exists (select from pgqueue.workers as w where w.id = fall_asleep.worker_id)
    on conflict (queue, period, worker_id) do update set slept_at = excluded.slept_at;
    update pgqueue.sleepers as s set slept_at = '-infinity'
      from pgqueue.workers as w cross join unnest(w.queues) as q (queue)
     where w.id = fall_asleep.worker_id and q.queue <> all (fall_asleep.queues)
       and s.queue = q.queue and s.worker_id = w.id
       and s.period > now() - interval '1 minute' and s.slept_at > '-infinity';
end $$;
comment on function pgqueue.fall_asleep(bigint, text[]) is
'Registers a worker as asleep for these queues and no others: enqueues into these queues notify it on channel pgqueue_<worker_id>.';

-- (2) and (3). Called by workers and upkeep. `among`: only these; null: all. Locks: none.
create function pgqueue.writers(relation text, among text[] default null)
returns text[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
declare
    written constant regclass := to_regclass('pgqueue.' || quote_ident(writers.relation));
begin
    if written is null then
        raise exception using errcode = 'PQ001', message = format('relation: %s is no table of pgqueue', pgqueue.as_given(relation)),
            hint = 'ready_jobs, scheduled_jobs, finished_jobs, dead_letters, job_failures, and so on';
    end if;
    return array(
        select l.virtualtransaction from pg_catalog.pg_locks as l
         where l.locktype = 'relation' and l.mode = 'RowExclusiveLock' and l.granted
           and l.database = (select d.oid from pg_catalog.pg_database as d where d.datname = current_database())
           and l.relation = written
           and l.pid is distinct from pg_backend_pid()
           -- A prepared transaction that the server has recovered is called -1/xid, whatever it was called before; after
           -- a crash of one backend that happens without a new start time. So it counts among any.
           and (writers.among is null or l.virtualtransaction = any (writers.among) or l.virtualtransaction like '-1/%'));
end $$;
comment on function pgqueue.writers(text, text[]) is
'The virtual transactions, prepared ones included, that hold a lock for writing on a table of pgqueue.';

-- Called by workers that have been busy for 200 ms, and at their end. Locks: the worker's rows of sleepers.
-- The rows stay, awake: under a held snapshot a row that is deleted and inserted again leaves an index entry each time,
-- and every insert of that key walks over all of them.
create function pgqueue.wake_up(worker_id bigint)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    update pgqueue.sleepers as s set slept_at = '-infinity'
      from pgqueue.workers as w cross join unnest(w.queues) as q (queue)
     where w.id = wake_up.worker_id and s.queue = q.queue and s.worker_id = w.id
       and s.period > now() - interval '1 minute' and s.slept_at > '-infinity';
end $$;
comment on function pgqueue.wake_up(bigint) is 'Takes a worker off the sleepers: nobody notifies it any more.';
