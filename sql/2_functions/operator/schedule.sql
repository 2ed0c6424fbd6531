-- Makes or changes a schedule by hand: no app's code removes it or takes it over. Called by operators and applications.
-- Locks: the schedule's row. Index: schedules_one_row_a_name.
create function pgqueue.schedule(
    name         text,
    task         text,
    args         jsonb            default null,
    cron         text             default null,
    every        double precision default null,
    at           timestamptz      default null,
    tz           text             default null,
    seconds      text             default null,
    starts_at    timestamptz      default null,
    ends_at      timestamptz      default null,
    jitter       double precision default null,
    grace        double precision default null,
    missed       text             default null,
    missed_limit integer          default null,
    overlap      text             default null,
    queue        text             default null,
    priority     integer          default null,
    max_attempts integer          default null,
    options      jsonb            default null
) returns text language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    outcome text;
begin
    if not at > clock_timestamp()  -- unless it was said before: a script may be run again
       and not exists (select from pgqueue.schedules as s where s.name = schedule.name and s.at = schedule.at) then
        raise exception using errcode = 'PQ001', message = format('schedule %s: at: %s has passed', left(name, 100), at),
            hint = 'For a job now, call pgqueue.enqueue.';
    end if;
    outcome := pgqueue.put_schedule(name, null, jsonb_build_object(
        'task', task, 'args', args, 'cron', cron, 'every', every, 'at', at, 'tz', tz, 'seconds', seconds,
        'starts_at', starts_at, 'ends_at', ends_at, 'jitter', jitter, 'grace', grace, 'missed', missed,
        'missed_limit', missed_limit, 'overlap', overlap, 'queue', queue, 'priority', priority,
        'max_attempts', max_attempts, 'options', options));
    if outcome <> 'unchanged' then
        perform pgqueue.audited('schedule', schedule.name, details => jsonb_build_object('outcome', outcome, 'task', task,
            'cron', cron, 'every', every, 'at', at));
    end if;
    return outcome;
end $$;
comment on function pgqueue.schedule(text, text, jsonb, text, double precision, timestamptz, text, text, timestamptz, timestamptz, double precision, double precision, text, integer, text, text, integer, integer, jsonb) is
'Makes or changes a schedule, with one of cron, every (seconds) and at. Returns created, changed or unchanged. NULL means the default. select pgqueue.schedule(''clean-up'', ''clean_up'', cron => ''0 3 * * *'', tz => ''Europe/Paris'')';

-- Called by operators and applications. Its jobs stay; its history goes. Locks: its rows. Index: the primary keys.
create function pgqueue.unschedule(name text)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from pgqueue.schedules as s where s.name = unschedule.name;
    if not found then
        return false;
    end if;
    delete from pgqueue.schedule_runs as r where r.schedule = unschedule.name;
    perform pgqueue.audited('unschedule', unschedule.name);
    return true;
end $$;
comment on function pgqueue.unschedule(text) is 'Deletes a schedule and its history. Returns whether there was one.';

-- Called by operators. Locks: its row. Index: schedules_one_row_a_name.
create function pgqueue.pause_schedule(name text)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgqueue.schedules as s set paused_at = coalesce(s.paused_at, clock_timestamp()) where s.name = pause_schedule.name;
    if not found then
        return false;
    end if;
    perform pgqueue.audited('pause_schedule', pause_schedule.name);
    return true;
end $$;
comment on function pgqueue.pause_schedule(text) is 'Pauses a schedule: its due times pass, and are not missed. Returns whether there is one.';

-- Called by operators. Due times count from now on. Locks: its row. Index: schedules_one_row_a_name.
create function pgqueue.resume_schedule(name text)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgqueue.schedules as s
       set paused_at = null, problem = null, changed_at = clock_timestamp(),
           due_at = case when s.at_startup then 'infinity' else '-infinity' end::timestamptz
     where s.name = resume_schedule.name and (s.paused_at is not null or s.problem is not null);
    if found then
        perform pgqueue.wake_leader('-infinity');
        perform pgqueue.audited('resume_schedule', resume_schedule.name);
        return true;
    end if;
    return exists (select from pgqueue.schedules as s where s.name = resume_schedule.name);
end $$;
comment on function pgqueue.resume_schedule(text) is 'Resumes a schedule that was paused, or had a problem. Returns whether there is one.';

-- Called by operators: a run beside those that are due, also of a paused schedule. Locks: its row, those of enqueue.
create function pgqueue.run_schedule(name text, out job_id bigint, out outcome text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    held pgqueue.schedules;
begin
    select * into held from pgqueue.schedules as s where s.name = run_schedule.name for update;
    if found then
        select r.job_id, r.outcome into job_id, outcome from pgqueue.run_due(held, clock_timestamp(), 'by_hand', 0, false) as r;
        perform pgqueue.audited('run_schedule', run_schedule.name, details => jsonb_build_object('job_id', job_id, 'outcome', outcome));
    end if;
end $$;
comment on function pgqueue.run_schedule(text) is
'Enqueues a schedule''s job now, beside its due times. Returns the job and by_hand; or the unfinished one that its overlap policy keeps, and overlapped or joined; nulls: there is no such schedule.';

-- What views leave out of a schedule. Called by operators. Locks: none. Index: schedules_one_row_a_name.
create function pgqueue.schedule_record(name text)
returns table (args jsonb, options jsonb) language sql stable security definer rows 1
set search_path = pg_catalog, pg_temp
as $$ select s.args, s.options from pgqueue.schedules as s where s.name = schedule_record.name $$;
comment on function pgqueue.schedule_record(text) is 'The args and options of a schedule''s jobs; no row: there is no such schedule.';
