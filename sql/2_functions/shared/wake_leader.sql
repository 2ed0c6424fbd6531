-- Notifies the leader of upkeep when something falls due before it looks again.
-- Called by whatever has just inserted into scheduled_jobs (after the insert: see upkeep/keep_time.sql) or changed a
-- schedule. Locks: none.
create function pgqueue.wake_leader(due timestamptz)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if extract(epoch from due) * 1000 < (select n.last_value from pgqueue.next_look as n) then
        perform pg_notify('pgqueue_upkeep_' || l.supervisor_id, '') from pgqueue.leadership as l
          where current_setting('pgqueue.notify', true) is distinct from 'off';
    end if;
end $$;
comment on function pgqueue.wake_leader(timestamptz) is
'Private. Notifies the leader on channel pgqueue_upkeep_<supervisor_id> when `due` is sooner than its next look.';
