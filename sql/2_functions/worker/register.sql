-- Makes the row of a worker process, before it claims. Called by the supervisor.
-- Locks: RowExclusive on workers, heartbeats.
create function pgqueue.register(
    supervisor_id bigint, host text, pid integer, version text, queues text[], concurrency integer,
    lease double precision, session_lock boolean
) returns bigint language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    worker_id bigint;
begin
    if num_nulls(supervisor_id, host, pid, version, register.queues, session_lock) > 0
       or exists (select from unnest(register.queues) as q (queue) where q.queue is null) then
        raise exception using errcode = 'PQ001', message = format('register: supervisor_id %s, host %s, pid %s, version %s, queues %s, session_lock %s',
                coalesce(supervisor_id::text, 'null'), pgqueue.as_given(host), coalesce(pid::text, 'null'), pgqueue.as_given(version),
                pgqueue.as_given(queues::text), coalesce(session_lock::text, 'null')),
            hint = 'None of them may be null, nor one of the queues.';
    end if;
    if not coalesce(register.concurrency >= 1, false) then
        perform pgqueue.reject_range('concurrency', concurrency::text, 'From 1.');
    end if;
    insert into pgqueue.workers (supervisor_id, host, pid, version, queues, concurrency, lease, session_lock, started_at)
    values (register.supervisor_id, register.host, register.pid, register.version, register.queues,
            register.concurrency, make_interval(secs => pgqueue.checked_seconds('lease', register.lease)), register.session_lock, now())
    returning id into worker_id;
    insert into pgqueue.heartbeats (worker_id, beat_at) values (worker_id, clock_timestamp());
    return worker_id;
end $$;
comment on function pgqueue.register(bigint, text, integer, text, text[], integer, double precision, boolean) is
'Registers a worker process and returns its id. `lease` is in seconds.';

-- Holds the supervisor's session advisory lock: gone with the session, it lets rescue come early.
-- Called by the supervisor, once a connection, where session locks are sound. Locks: one advisory lock.
create function pgqueue.hold_session(supervisor_id bigint)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return pg_try_advisory_lock(hold_session.supervisor_id);
end $$;
comment on function pgqueue.hold_session(bigint) is
'Takes the session advisory lock of a supervisor; false when another session still holds it.';
