-- The schedules that are due, with all that their next due time is computed from. Called by the leader. Locks: none.
-- Index: schedules_due.
create function pgqueue.due_schedules()
returns table (name text, created_at timestamptz, changed_at timestamptz, due_at timestamptz, now timestamptz, cron text,
               seconds text, every double precision, at timestamptz, tz text, starts_at timestamptz, ends_at timestamptz,
               grace double precision, missed text, missed_limit integer)
language plpgsql security definer rows 10
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_indexscan = on
as $$
#variable_conflict use_column
declare
    read_at constant timestamptz := clock_timestamp();  -- a variable, for a volatile function cannot bound an index scan
begin
    return query
    select s.name, s.created_at, s.changed_at, nullif(s.due_at, '-infinity'), read_at, s.cron, s.seconds, s.every, s.at,
           s.tz, s.starts_at, s.ends_at, s.grace, s.missed, s.missed_limit
      from pgqueue.schedules as s
     where s.paused_at is null and s.due_at <= read_at
     order by s.due_at limit 100;
end $$;
comment on function pgqueue.due_schedules() is
'Up to 100 schedules that are due or to be planned (due_at null), and the clock by which they are.';

-- Enqueues the jobs of a schedule's due times, notes each, and sets its next due time: all in one transaction, or nothing.
-- Called by the leader, for each schedule by itself. Returns how many jobs were made; null: somebody else has been here,
-- or the schedule was changed or paused meanwhile: nothing was done. `due_at`: what was read (null: to be planned).
-- dues, outcomes, missed: the due times to note, each enqueued, caught_up or missed. next_due_at null: never again.
-- Locks: the schedule's row (skip locked), those of enqueue. Index: the primary keys.
create function pgqueue.tick(
    name text, changed_at timestamptz, due_at timestamptz, dues timestamptz[], outcomes text[], missed integer[],
    next_due_at timestamptz, problem text default null
) returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_indexscan = on set enable_indexonlyscan = on
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    held pgqueue.schedules;
    run record;
    made integer := 0;
begin
    select * into held from pgqueue.schedules as s
     where s.name = tick.name and s.changed_at = tick.changed_at and s.due_at = coalesce(tick.due_at, '-infinity')
       and s.paused_at is null
       for update skip locked;
    if not found then
        return null;
    end if;
    if exists (select from unnest(dues, missed) as d (due_at, missed) where num_nulls(d.due_at, d.missed) > 0)
       or not coalesce(outcomes <@ '{enqueued,caught_up,missed}'::text[], true)
       or cardinality(dues) is distinct from cardinality(outcomes) or cardinality(dues) is distinct from cardinality(missed) then
        raise exception using errcode = 'PQ001', message = format('schedule %s: dues, outcomes, missed: not one of each for a due time', left(tick.name, 100)),
            hint = 'outcomes: enqueued, caught_up or missed.';
    end if;
    perform pgqueue.settle_runs(held.name);
    for run in select * from unnest(dues, outcomes, missed) as d (due_at, outcome, missed) order by d.due_at loop
        if (select r.outcome from pgqueue.run_due(held, run.due_at, run.outcome, run.missed, true) as r)
           in ('enqueued', 'caught_up') then
            made := made + 1;
        end if;
    end loop;
    update pgqueue.schedules as s set due_at = coalesce(next_due_at, 'infinity'), problem = tick.problem
     where s.name = held.name;
    delete from pgqueue.schedule_runs as r
     where r.schedule = held.name and r.due_at < clock_timestamp() - interval '7 days'
       and r.due_at < (select k.due_at from pgqueue.schedule_runs as k where k.schedule = held.name
                        order by k.due_at desc offset 99 limit 1)
       and r.due_at <= (select k.due_at from pgqueue.schedule_runs as k where k.schedule = held.name
                         order by k.due_at offset 99 limit 1);
    return made;
end $$;
comment on function pgqueue.tick(text, timestamptz, timestamptz, timestamptz[], text[], integer[], timestamptz, text) is
'Enqueues what a schedule has due and sets its next due time, by compare and set. Returns how many jobs; null: it was not as read, and nothing was done.';
