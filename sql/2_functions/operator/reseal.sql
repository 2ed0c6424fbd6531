-- How much is sealed with which key: args, kept results and steps of tasks that encrypt (pgqueue/encryption.py).
-- Called by operators: keys list, and keys rotate, before an old key is thrown away.
-- Locks: none. Index: none; it reads every job, the history too.
create function pgqueue.count_sealed()
returns table (place text, key_id text, sealed bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
    select s.place, split_part(s.value ->> 'pgqueue.encrypted', '.', 2) as key_id, count(*) as sealed
      from (select 'ready' as place, r.args as value from pgqueue.ready_jobs as r
            union all select 'scheduled', w.args from pgqueue.scheduled_jobs as w
            union all select 'blocked', b.args from pgqueue.blocked_jobs as b
            union all select 'running', a.args from pgqueue.running_jobs as a
            union all select 'dead', d.args from pgqueue.dead_letters as d
            union all select 'schedules', c.args from pgqueue.schedules as c
            union all select 'steps', t.result from pgqueue.job_steps as t
            union all select 'finished', f.args from pgqueue.finished_jobs as f
            union all select 'results', f.result from pgqueue.finished_jobs as f) as s
     where s.value ? 'pgqueue.encrypted'
     group by 1, 2 order by 1, 2;
$$;
comment on function pgqueue.count_sealed() is
'How many args, results and steps are encrypted with which key, by place: ready, scheduled, blocked, running, dead, schedules, steps, finished (args of the history), results. Reads every job.';

-- What is sealed with another key than `newest`, in the order of ids (of a schedule: names), behind the last one seen.
-- Called by operators: keys rotate. Places: ready, scheduled, blocked, dead, schedules, steps.
-- Locks: none. Index: the primary keys.
create function pgqueue.find_sealed(
    place text, newest text, after_id bigint default 0, after_name text default '', max_rows integer default 500
) returns table (id bigint, name text, task text, queue text, value jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
begin
    case place
        when 'ready' then
            return query select r.id, '', r.task, r.queue, r.args from pgqueue.ready_jobs as r
             where r.id > after_id and r.args ? 'pgqueue.encrypted'
               and split_part(r.args ->> 'pgqueue.encrypted', '.', 2) is distinct from newest order by r.id limit greatest(max_rows, 0);
        when 'scheduled' then
            return query select s.id, '', s.task, s.queue, s.args from pgqueue.scheduled_jobs as s
             where s.id > after_id and s.args ? 'pgqueue.encrypted'
               and split_part(s.args ->> 'pgqueue.encrypted', '.', 2) is distinct from newest order by s.id limit greatest(max_rows, 0);
        when 'blocked' then
            return query select b.id, '', b.task, b.queue, b.args from pgqueue.blocked_jobs as b
             where b.id > after_id and b.args ? 'pgqueue.encrypted'
               and split_part(b.args ->> 'pgqueue.encrypted', '.', 2) is distinct from newest order by b.id limit greatest(max_rows, 0);
        when 'dead' then
            return query select d.id, '', d.task, d.queue, d.args from pgqueue.dead_letters as d
             where d.id > after_id and d.args ? 'pgqueue.encrypted'
               and split_part(d.args ->> 'pgqueue.encrypted', '.', 2) is distinct from newest order by d.id limit greatest(max_rows, 0);
        when 'schedules' then
            return query select 0::bigint, s.name, s.task, s.queue, s.args from pgqueue.schedules as s
             where s.name > after_name collate "C" and s.args ? 'pgqueue.encrypted'
               and split_part(s.args ->> 'pgqueue.encrypted', '.', 2) is distinct from newest order by s.name limit greatest(max_rows, 0);
        when 'steps' then
            return query select t.job_id, t.name, j.task, j.queue, t.result
              from pgqueue.job_steps as t
              join lateral (select r.task, r.queue from pgqueue.ready_jobs as r where r.id = t.job_id
                            union all select s.task, s.queue from pgqueue.scheduled_jobs as s where s.id = t.job_id
                            union all select a.task, a.queue from pgqueue.running_jobs as a where a.id = t.job_id
                            union all select d.task, d.queue from pgqueue.dead_letters as d where d.id = t.job_id) as j on true
             where (t.job_id, t.name) > (after_id, after_name collate "C") and t.result ? 'pgqueue.encrypted'
               and split_part(t.result ->> 'pgqueue.encrypted', '.', 2) is distinct from newest order by t.job_id, t.name limit greatest(max_rows, 0);
        else
            raise exception using errcode = 'PQ001', message = format('place: there is nothing to seal anew in %s', pgqueue.as_given(place)),
                hint = 'One of ready, scheduled, blocked, dead, schedules, steps.';
    end case;
end $$;
comment on function pgqueue.find_sealed(text, text, bigint, text, integer) is
'What is encrypted with another key than the newest, in one place: ready, scheduled, blocked, dead, schedules or steps; at most max_rows, behind after_id and after_name.';

-- Puts what was sealed with the newest key in the place of what was sealed with an older one, where that is still there.
-- Called by operators: keys rotate. `items`: a JSON array of {id, name, old, new}, as find_sealed has given them.
-- Locks: the rows that nobody else holds; the others stay as they are, for the next round. Index: the primary keys.
create function pgqueue.reseal(place text, items jsonb)
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    resealed integer;
    wrong text;
begin
    if items is null or jsonb_typeof(items) <> 'array' then
        raise exception using errcode = 'PQ001', message = 'items: expected a JSON array',
            hint = 'Of objects {id, name, old, new}; old is what pgqueue.find_sealed gave.';
    end if;
    case place
        when 'ready' then
            with free as (
                select r.id, g.new from pgqueue.ready_jobs as r
                  join jsonb_to_recordset(items) as g (id bigint, old jsonb, new jsonb) on g.id = r.id and g.old = r.args
                 where g.new ? 'pgqueue.encrypted' order by r.id for update of r skip locked)
            update pgqueue.ready_jobs as r set args = f.new from free as f where f.id = r.id;
        when 'scheduled' then
            with free as (
                select s.id, g.new from pgqueue.scheduled_jobs as s
                  join jsonb_to_recordset(items) as g (id bigint, old jsonb, new jsonb) on g.id = s.id and g.old = s.args
                 where g.new ? 'pgqueue.encrypted' order by s.id for update of s skip locked)
            update pgqueue.scheduled_jobs as s set args = f.new from free as f where f.id = s.id;
        when 'blocked' then
            with free as (
                select b.id, g.new from pgqueue.blocked_jobs as b
                  join jsonb_to_recordset(items) as g (id bigint, old jsonb, new jsonb) on g.id = b.id and g.old = b.args
                 where g.new ? 'pgqueue.encrypted' order by b.id for update of b skip locked)
            update pgqueue.blocked_jobs as b set args = f.new from free as f where f.id = b.id;
        when 'dead' then
            with free as (
                select d.id, g.new from pgqueue.dead_letters as d
                  join jsonb_to_recordset(items) as g (id bigint, old jsonb, new jsonb) on g.id = d.id and g.old = d.args
                 where g.new ? 'pgqueue.encrypted' order by d.id for update of d skip locked)
            update pgqueue.dead_letters as d set args = f.new from free as f where f.id = d.id;
        when 'schedules' then
            with free as (
                select s.name, g.new from pgqueue.schedules as s
                  join jsonb_to_recordset(items) as g (name text, old jsonb, new jsonb) on g.name = s.name and g.old = s.args
                 where g.new ? 'pgqueue.encrypted' order by s.name for update of s skip locked)
            update pgqueue.schedules as s set args = f.new from free as f where f.name = s.name;
        when 'steps' then
            with free as (
                select t.job_id, t.name, g.new from pgqueue.job_steps as t
                  join jsonb_to_recordset(items) as g (id bigint, name text, old jsonb, new jsonb)
                    on g.id = t.job_id and g.name = t.name and g.old = t.result
                 where g.new ? 'pgqueue.encrypted' order by t.job_id, t.name for update of t skip locked)
            update pgqueue.job_steps as t set result = f.new from free as f where f.job_id = t.job_id and f.name = t.name;
        else
            raise exception using errcode = 'PQ001', message = format('place: there is nothing to seal anew in %s', pgqueue.as_given(place)),
                hint = 'One of ready, scheduled, blocked, dead, schedules, steps.';
    end case;
    get diagnostics resealed = row_count;
    if resealed > 0 then
        perform pgqueue.audited('reseal', place, details => jsonb_build_object('resealed', resealed));
    end if;
    return resealed;
exception
    when data_exception then
        get stacked diagnostics wrong = message_text;
        raise exception using errcode = 'PQ001', message = format('items: cannot be read: %s', wrong),
            hint = 'Objects {id, name, old, new}; old is what pgqueue.find_sealed gave.';
end $$;
comment on function pgqueue.reseal(text, jsonb) is
'Replaces what was encrypted with an older key, where it is still as it was found and nobody holds it; returns how many. items: [{id, name, old, new}] as of pgqueue.find_sealed().';
