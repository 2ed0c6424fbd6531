-- Makes the day partitions ahead, and forgets idempotency keys that have expired and steps of jobs that have ended, at
-- most 1,000 a call. Notes how the last jobs of schedules have ended that do not tick any more.
-- Called by the leader, once an hour. The only place with dynamic SQL: a partition's name is its day.
-- Locks: SHARE UPDATE EXCLUSIVE on the parents, by ATTACH (create ... partition of would wait behind BI readers, and
-- completions behind it). Index: unique_keys_expiry, job_steps_by_time.
create function pgqueue.retain()
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set lock_timeout = '1s' set enable_tidscan = on
as $$
declare
    parent text;
    day date;
    name text;
    made integer := 0;
begin
    perform pg_advisory_xact_lock(hashtextextended('pgqueue.retain', 0));
    foreach parent in array array['finished_jobs', 'job_failures', 'job_reports'] loop
        for ahead in 0..7 loop
            day := (now() at time zone 'UTC')::date + ahead;
            name := parent || to_char(day, '_YYYYMMDD');
            continue when to_regclass('pgqueue.' || name) is not null;
            execute format('create table pgqueue.%I (like pgqueue.%I including defaults including indexes including comments, '
                           'constraint %I check (day >= %L and day < %L))',
                           name, parent, name || '_day', day, day + 1);
            execute format('alter table pgqueue.%I attach partition pgqueue.%I for values from (%L) to (%L)',
                           parent, name, day, day + 1);
            execute format('alter table pgqueue.%I drop constraint %I', name, name || '_day');
            made := made + 1;
        end loop;
    end loop;
    delete from pgqueue.unique_keys as k
     where k.ctid = any (array(select e.ctid from pgqueue.unique_keys as e where e.expires_at < now()
                                order by e.expires_at limit 1000 for update skip locked));
    delete from pgqueue.job_steps as s
     where s.ctid = any (array(
         select e.ctid from pgqueue.job_steps as e
          where e.recorded_at < now() - interval '1 day'
            and not exists (select from pgqueue.scheduled_jobs as j where j.id = e.job_id)
            and not exists (select from pgqueue.ready_jobs as j where j.id = e.job_id)
            and not exists (select from pgqueue.running_jobs as j where j.id = e.job_id)
            and not exists (select from pgqueue.dead_letters as j where j.id = e.job_id)  -- it may be replayed
          order by e.recorded_at limit 1000));
    -- of workers that died; that of a running job goes with its attempt
    delete from pgqueue.job_progress as p
     where p.noted_at < now() - interval '1 day'
       and not exists (select from pgqueue.running_jobs as r where r.id = p.job_id and r.lease = p.lease);
    perform pgqueue.settle_runs(s.name) from pgqueue.schedules as s;
    return made;
end $$;
comment on function pgqueue.retain() is 'Makes the partitions of today and the next 7 days, forgets expired idempotency keys and the steps of ended jobs. Returns how many partitions it made.';
