-- Brings the schedules that an app's code defines to what the code says now: adds, changes, and removes those of `owner`
-- that it does not have any more. One made by hand, or by another app, is left alone, and told.
-- Called by a worker at its start. schedules: an array of objects keyed like the arguments of schedule. starts: whether
-- the worker was started, and not replaced: then those at_startup are due.
-- Locks: a lock a owner, the schedules' rows. Index: schedules_one_row_a_name.
create function pgqueue.sync_schedules(owner text, schedules jsonb, starts boolean)
returns table (name text, outcome text) language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
declare
    wanted jsonb;
begin
    if not coalesce(length(owner) between 1 and 200, false) then
        raise exception using errcode = 'PQ001', message = format('owner: %s is not a name', pgqueue.as_given(owner)),
            hint = 'The app''s name, of 1 to 200 characters: what it does not define any more is removed.';
    end if;
    if not coalesce(jsonb_typeof(schedules) = 'array', false) or jsonb_path_exists(schedules, 'strict $[*] ? (@.type() != "object")') then
        raise exception using errcode = 'PQ001', message = 'schedules: expected a JSON array of objects',
            hint = 'Each keyed like the arguments of pgqueue.schedule.';
    end if;
    perform pg_advisory_xact_lock(hashtextextended('pgqueue.sync_schedules ' || owner, 0));
    for wanted in select s.item from jsonb_array_elements(schedules) as s (item) order by s.item ->> 'name' loop
        name := wanted ->> 'name';
        if exists (select from pgqueue.schedules as s where s.name = wanted ->> 'name' and s.owner is distinct from sync_schedules.owner) then
            outcome := 'foreign';
        else
            outcome := pgqueue.put_schedule(wanted ->> 'name', sync_schedules.owner, wanted - 'name');
            if starts and outcome <> 'foreign' then
                update pgqueue.schedules as s set due_at = clock_timestamp()
                 where s.name = wanted ->> 'name' and s.at_startup and s.due_at = 'infinity' and s.problem is null
                   and not exists (select from pgqueue.schedule_runs as r
                                    where r.schedule = s.name and r.outcome <> 'by_hand'
                                      and r.due_at > clock_timestamp() - make_interval(secs => s.grace));
                if found then
                    perform pgqueue.wake_leader('-infinity');
                end if;
            end if;
        end if;
        return next;
    end loop;
    outcome := 'removed';
    for name in
        select s.name from pgqueue.schedules as s
         where s.owner = sync_schedules.owner
           and s.name not in (select w.item ->> 'name' from jsonb_array_elements(schedules) as w (item))
         order by s.name
    loop
        perform pgqueue.unschedule(name);
        return next;
    end loop;
end $$;
comment on function pgqueue.sync_schedules(text, jsonb, boolean) is
'Makes the schedules of an app what its code says. Returns each with what became of it: created, changed, unchanged, removed, or foreign (made by hand or by another app, and left alone).';
