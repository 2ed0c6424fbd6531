-- Wakes as many idle workers of a queue as it brings jobs, each on its own channel; nobody asleep: no NOTIFY.
-- Called by enqueue, promote, release, rescue, replay, and by a claim that came back full; after their insert, in a
-- statement of its own (VOLATILE: a fresh snapshot), which is half of what closes the race with falling asleep.
-- Locks: none, unless it notifies (then the database-wide NOTIFY lock at commit). Index: sleepers_one_row_a_worker_and_period.
create function pgqueue.notify_sleepers(queue text, jobs integer)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        -- an old snapshot cannot see who fell asleep since: everybody looks
        perform pg_notify('pgqueue', '') where current_setting('pgqueue.notify', true) is distinct from 'off';
        return;
    end if;
    perform pg_notify('pgqueue_' || s.worker_id, '')
       from (select sleepers.worker_id
               from pgqueue.sleepers
              where sleepers.queue = notify_sleepers.queue and sleepers.period > now() - interval '35 seconds'
                and sleepers.slept_at > clock_timestamp() - interval '25 seconds'
              group by sleepers.worker_id
              order by max(sleepers.slept_at) desc
              limit notify_sleepers.jobs) as s
      where current_setting('pgqueue.notify', true) is distinct from 'off';
end $$;
comment on function pgqueue.notify_sleepers(text, integer) is
'Private. Notifies up to `jobs` idle workers of `queue`. `set pgqueue.notify = off` silences it (for applications that PREPARE TRANSACTION).';
