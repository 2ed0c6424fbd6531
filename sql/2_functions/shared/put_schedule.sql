-- Makes or changes a schedule. Called by schedule and sync_schedules. `definition`: keyed like the arguments of schedule,
-- null: the default. When its timing changes it is planned anew, from now; else it keeps its next due time. A pause stays.
-- By hand (owner null) any may be changed; an app changes its own alone.
-- Locks: the schedule's row. Index: schedules_one_row_a_name.
create function pgqueue.put_schedule(name text, owner text, definition jsonb)
returns text language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    given constant jsonb := coalesce(
        (select jsonb_object_agg(d.key, d.value) from jsonb_each(definition) as d where d.value <> 'null'), '{}');
    wanted pgqueue.schedules;
    held pgqueue.schedules;
    at_once constant timestamptz := clock_timestamp();
begin
    perform pgqueue.reject_schedule(put_schedule.name, given);
    wanted := jsonb_populate_record(null::pgqueue.schedules, jsonb_build_object(
        'args', '{}'::jsonb, 'queue', 'default', 'priority', 5, 'max_attempts', 5, 'at_startup', false, 'tz', 'UTC',
        'jitter', 0, 'grace', 15, 'missed', 'once', 'missed_limit', 100, 'overlap', 'allow') || given);
    wanted.name := put_schedule.name;
    wanted.owner := put_schedule.owner;
    wanted.created_at := at_once;
    wanted.changed_at := at_once;
    wanted.paused_at := null;
    wanted.due_at := case when wanted.at_startup then 'infinity' else '-infinity' end;
    wanted.problem := null;
    insert into pgqueue.schedules select wanted.* on conflict on constraint schedules_one_row_a_name do nothing;
    if found then
        perform pgqueue.wake_leader(wanted.due_at);
        return 'created';
    end if;
    select * into held from pgqueue.schedules as s where s.name = put_schedule.name for update;
    if not found then  -- deleted between the two statements
        return pgqueue.put_schedule(put_schedule.name, put_schedule.owner, definition);
    end if;
    if held.owner is distinct from put_schedule.owner and put_schedule.owner is not null then
        return 'foreign';
    end if;
    wanted.created_at := held.created_at;
    wanted.paused_at := held.paused_at;
    if held.problem is null
       and row (wanted.cron, wanted.seconds, wanted.every, wanted.at, wanted.at_startup, wanted.tz, wanted.starts_at, wanted.ends_at)
           is not distinct from
           row (held.cron, held.seconds, held.every, held.at, held.at_startup, held.tz, held.starts_at, held.ends_at)
    then
        wanted.changed_at := held.changed_at;
        wanted.due_at := held.due_at;
    end if;
    if wanted is not distinct from held then
        return 'unchanged';
    end if;
    update pgqueue.schedules as s
       set owner = wanted.owner, task = wanted.task, args = wanted.args, queue = wanted.queue, priority = wanted.priority,
           max_attempts = wanted.max_attempts, options = wanted.options, cron = wanted.cron, seconds = wanted.seconds,
           every = wanted.every, at = wanted.at, at_startup = wanted.at_startup, tz = wanted.tz,
           starts_at = wanted.starts_at, ends_at = wanted.ends_at, jitter = wanted.jitter, grace = wanted.grace,
           missed = wanted.missed, missed_limit = wanted.missed_limit, overlap = wanted.overlap,
           changed_at = wanted.changed_at, due_at = wanted.due_at, problem = wanted.problem
     where s.name = wanted.name;
    perform pgqueue.wake_leader(wanted.due_at);
    return 'changed';
end $$;
comment on function pgqueue.put_schedule(text, text, jsonb) is 'Private. Makes or changes a schedule: created, changed or unchanged; foreign: it belongs to somebody else.';

-- Says what is wrong with a schedule, and refuses it with SQLSTATE PQ001 (PQ003 for args) and a hint.
-- Called by put_schedule. A cron expression is read by the leader; a bad one is said in schedules.problem. Locks: none.
create function pgqueue.reject_schedule(name text, definition jsonb)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    seconds constant text := 'Seconds, from 0 to ten years.';
    timings constant text[] := array(
        select t.key from unnest(array['cron', 'every', 'at', 'at_startup']) as t (key)
         where coalesce(definition ->> t.key, 'false') <> 'false');
    stranger constant text := (
        select k.key from jsonb_object_keys(definition) as k (key)
         where k.key not in ('task', 'args', 'queue', 'priority', 'max_attempts', 'options', 'cron', 'seconds', 'every', 'at',
                             'at_startup', 'tz', 'starts_at', 'ends_at', 'jitter', 'grace', 'missed', 'missed_limit', 'overlap')
         order by k.key limit 1);
    mistyped constant text := (
        select f.key from (values ('task', 'string'), ('queue', 'string'), ('priority', 'number'),
                                  ('max_attempts', 'number'), ('cron', 'string'), ('seconds', 'string'),
                                  ('every', 'number'), ('at', 'string'), ('at_startup', 'boolean'), ('tz', 'string'),
                                  ('starts_at', 'string'), ('ends_at', 'string'), ('jitter', 'number'), ('grace', 'number'),
                                  ('missed', 'string'), ('missed_limit', 'number'), ('overlap', 'string')) as f (key, kind)
         where jsonb_typeof(definition -> f.key) <> f.kind or f.key in ('priority', 'max_attempts', 'missed_limit')
               and definition ->> f.key !~ '^-?[0-9]{1,9}$' or f.key in ('at', 'starts_at', 'ends_at')
               and definition -> f.key is not null and pgqueue.as_moment(definition -> f.key) is null
         order by f.key limit 1);
    absurd text;
    place constant text := format('schedule %s: ', regexp_replace(left(coalesce(name, 'null'), 100), '[[:cntrl:]]', '?', 'g'));
    code text := 'PQ001';
    problem text;
    remedy text;
begin
    if mistyped is null then
        absurd := (select t.key from unnest(array['at', 'starts_at', 'ends_at']) as t (key)
                    where not (definition ->> t.key)::timestamptz between '1970-01-01 UTC' and '2199-12-31 23:59:59 UTC' limit 1);
    end if;
    case
        when name is null or length(name) not between 1 and 100 or name ~ '[[:cntrl:]*"'']' then
            problem := format('name: %s is not a name', pgqueue.as_given(name));
            remedy := 'A schedule''s name has 1 to 100 characters: no control characters, quotes or asterisks.';
        when stranger is not null then
            problem := format('there is no %s', pgqueue.as_given(stranger));
            remedy := 'See the arguments of pgqueue.schedule.';
        when mistyped is not null then
            problem := case when mistyped in ('every', 'jitter', 'grace')
                            then format('%s: %s is out of range', mistyped, trim(both '''' from pgqueue.as_given(definition ->> mistyped)))
                            else format('%s: %s is none', mistyped, pgqueue.as_given(definition ->> mistyped)) end;
            remedy := case
                when mistyped in ('at', 'starts_at', 'ends_at') then 'A time, ISO 8601: 2026-11-23T09:00:00+00:00.'
                when mistyped in ('priority', 'max_attempts', 'missed_limit') then 'A whole number.'
                when mistyped = 'every' then 'Seconds, from 1 to ten years.'
                when mistyped in ('jitter', 'grace') then seconds
                when mistyped = 'at_startup' then 'true or false.'
                else 'Text.' end;
        when cardinality(timings) <> 1 then
            problem := case when timings = '{}' then 'no timing' else array_to_string(timings, ', ') || ': given together' end;
            remedy := 'Give one of cron, every, at and at_startup.';
        when definition ->> 'seconds' not in ('first', 'last') then
            problem := format('seconds: %s is none', pgqueue.as_given(definition ->> 'seconds'));
            remedy := 'first or last: where the seconds of a cron expression of six fields are.';
        when definition ? 'seconds' and not definition ? 'cron' then
            problem := 'seconds: there is no cron';
            remedy := 'It says where the seconds of a cron expression of six fields are: leave it out.';
        when length(definition ->> 'cron') > 500 then
            problem := format('cron: %s characters', length(definition ->> 'cron'));
            remedy := 'At most 500 characters.';
        when cardinality(regexp_split_to_array(btrim(definition ->> 'cron'), '\s+'))
             <> (case when definition ->> 'cron' ~ '^\s*@' then 1 when definition ? 'seconds' then 6 else 5 end) then
            problem := format('cron: %s has %s fields', pgqueue.as_given(definition ->> 'cron', 100),
                              cardinality(regexp_split_to_array(btrim(definition ->> 'cron'), '\s+')));
            remedy := 'minute hour day month weekday; a sixth field, for seconds, needs seconds => ''first'' or ''last''.';
        when not (definition ->> 'every')::numeric between 1 and 315360000 then
            problem := format('every: %s is out of range', left(definition ->> 'every', 40));
            remedy := 'Seconds, from 1 to ten years.';
        when not (definition ->> 'jitter')::numeric between 0 and 315360000 then
            problem := format('jitter: %s is out of range', left(definition ->> 'jitter', 40));
            remedy := seconds;
        when not (definition ->> 'grace')::numeric between 0 and 315360000 then
            problem := format('grace: %s is out of range', left(definition ->> 'grace', 40));
            remedy := seconds;
        when definition ->> 'missed' not in ('skip', 'once', 'all') then
            problem := format('missed: %s is none', pgqueue.as_given(definition ->> 'missed'));
            remedy := 'skip, once or all.';
        when not (definition ->> 'missed_limit')::numeric between 1 and 1000 then
            problem := format('missed_limit: %s is out of range', left(definition ->> 'missed_limit', 40));
            remedy := 'From 1 to 1000.';
        when definition ->> 'overlap' not in ('allow', 'skip', 'queue') then
            problem := format('overlap: %s is none', pgqueue.as_given(definition ->> 'overlap'));
            remedy := 'allow, skip or queue.';
        when absurd is not null then
            problem := format('%s: %s is out of range', absurd, left(definition ->> absurd, 40));
            remedy := 'From the year 1970 to 2199.';
        when exists (select from unnest(array['at', 'starts_at', 'ends_at']) as t (key)
                      where not (definition ->> t.key)::timestamptz between '1970-01-01' and '2199-12-31') then
            problem := 'at, starts_at, ends_at: out of range';
            remedy := 'From 1970 to 2199.';
        when (definition ->> 'starts_at')::timestamptz > (definition ->> 'ends_at')::timestamptz then
            problem := 'ends_at: it lies before starts_at';
            remedy := 'No due time would be left.';
        when definition -> 'options' ? 'unique' then
            problem := 'options.unique: a schedule has none';
            remedy := 'overlap says what happens while its last job is unfinished.';
        -- the view takes 15 ms, so it is asked for the first schedule of a zone
        when definition ->> 'tz' <> 'UTC'
             and not exists (select from pgqueue.schedules as s where s.tz = definition ->> 'tz')
             and not exists (select from pg_catalog.pg_timezone_names as z where z.name = definition ->> 'tz') then
            problem := format('tz: there is no time zone %s', pgqueue.as_given(definition ->> 'tz'));
            remedy := 'A name such as Europe/Paris.';
        else
            begin
                perform pgqueue.reject_job(
                    definition ->> 'task', coalesce(definition -> 'args', '{}'), definition ->> 'queue',
                    (definition ->> 'priority')::integer, null, null, (definition ->> 'max_attempts')::integer, null, null,
                    definition -> 'options');
                return;
            exception when sqlstate 'PQ001' or sqlstate 'PQ003' then
                code := sqlstate;
                get stacked diagnostics problem = message_text, remedy = pg_exception_hint;
            end;
    end case;
    raise exception using errcode = code, message = place || problem, hint = remedy;
end $$;
comment on function pgqueue.reject_schedule(text, jsonb) is
'Private. Raises PQ001 or PQ003 naming the first bad part of a schedule, with a hint; returns when there is none.';
