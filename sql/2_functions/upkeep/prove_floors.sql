-- Proves the floors of the lanes and the low-water mark of run_at. Called by the leader, at most every 2 s.
-- It is the rule by which CREATE INDEX CONCURRENTLY waits for lockers: (1) read the bound, (2) in a later statement
-- read who holds a lock for writing, (3) once none of those is left, in a new snapshot, read the lowest visible row;
-- the floor is the least of both and never moves back. A transaction that only reads, or writes elsewhere, does not
-- hold it back; one that has enqueued does, until it ends.
-- Hazards (each lost jobs when tried): the lowest visible row alone; lockers read before the bound; the lowest row
-- read too early; a snapshot that outlives a statement (so: READ COMMITTED only). A record made before a server start
-- is void, for a prepared transaction changes its name then.
-- Locks: row exclusive on its own tables. Index: ready_jobs_lane, scheduled_jobs_due.
create function pgqueue.prove_floors()
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    record pgqueue.floor_proofs;
    moved bigint[];
    line text;
    old bigint[];
    mark timestamptz;
    bound_position bigint;
    bound_run_at timestamptz;
    lockers text[];
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using errcode = 'PQ001', message = 'prove_floors needs READ COMMITTED',
            hint = 'Each of its statements must have a snapshot of its own.';
    end if;
    perform set_config('synchronous_commit', 'off', true);
    if not pg_try_advisory_xact_lock(hashtextextended('pgqueue.prove_floors', 0)) then
        return;
    end if;

    select * into record from pgqueue.floor_proofs as f
     where f.subject = 'ready_jobs' and f.server_started_at = pg_postmaster_start_time();
    if not found or cardinality(pgqueue.writers('ready_jobs', record.lockers)) = 0 then
        if record.subject is not null then
            for line in
                select l.queue from pgqueue.lane_floors as l
                 union select unnest(w.queues) from pgqueue.workers as w
            loop
                select f.floors into old from pgqueue.lane_floors as f where f.queue = line;
                old := coalesce(old, array_fill(0::bigint, array[20]));
                moved := array(
                    select greatest(o.floor, least(
                               coalesce((select r.position from pgqueue.ready_jobs as r
                                          where r.queue = line and r.lane = o.number - 1 and r.position >= o.floor
                                          order by r.position limit 1), record.next_position),
                               record.next_position))
                      from unnest(old) with ordinality as o (floor, number) order by o.number);
                if moved is distinct from old then
                    insert into pgqueue.lane_floors as f (queue, floors) values (line, moved)
                    on conflict (queue) do update set floors = excluded.floors;
                end if;
            end loop;
        end if;
        -- the next position to be drawn; a sequence that was never used has drawn none
        select s.last_value + s.is_called::integer into bound_position from pgqueue.positions as s;
        if bound_position is distinct from record.next_position then
            lockers := pgqueue.writers('ready_jobs');
            insert into pgqueue.floor_proofs as f (subject, next_position, lockers, server_started_at)
            values ('ready_jobs', bound_position, lockers, pg_postmaster_start_time())
            on conflict (subject) do update
                set next_position = excluded.next_position, lockers = excluded.lockers,
                    server_started_at = excluded.server_started_at;
        end if;
    end if;

    record := null;
    select * into record from pgqueue.floor_proofs as f where f.subject = 'scheduled_jobs';
    if record.server_started_at is distinct from pg_postmaster_start_time()
       or cardinality(pgqueue.writers('scheduled_jobs', record.lockers)) = 0
    then
        -- after another start the mark begins anew: the clock of a promoted standby may be behind the old one's, and so
        -- may this one's, when it was set back
        mark := '-infinity';
        if record.server_started_at = pg_postmaster_start_time() and record.next_run_at <= clock_timestamp() then
            mark := coalesce(record.proven_run_at, mark);
            mark := greatest(mark, least(record.next_run_at, coalesce(
                (select s.run_at from pgqueue.scheduled_jobs as s where s.run_at >= mark order by s.run_at limit 1),
                record.next_run_at)));
        end if;
        bound_run_at := clock_timestamp();
        lockers := pgqueue.writers('scheduled_jobs');
        insert into pgqueue.floor_proofs as f (subject, next_run_at, proven_run_at, lockers, server_started_at)
        values ('scheduled_jobs', bound_run_at, mark, lockers, pg_postmaster_start_time())
        on conflict (subject) do update
            set next_run_at = excluded.next_run_at, proven_run_at = excluded.proven_run_at, lockers = excluded.lockers,
                server_started_at = excluded.server_started_at;
    end if;
end $$;
comment on function pgqueue.prove_floors() is
'Moves the lane floors and the low-water mark of run_at up to what is proven, and begins the next proof.';
