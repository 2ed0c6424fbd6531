-- Changes the settings of a queue: those that are given; null: the default again. Called by operators.
-- Running workers are told: what is theirs (worker_limit, timeout) they have at once, or else with their next round of upkeep.
-- max_attempts is for jobs that are enqueued from now on.
-- Locks: the queue's row. Index: queues_one_row_a_name.
create function pgqueue.set_queue(queue text, settings jsonb)
returns jsonb language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    known constant text[] := '{worker_limit,max_attempts,timeout,target_wait,keep_completed,keep_cancelled,keep_dead,max_completed,max_cancelled,max_dead,max_depth,max_oldest,max_failure_ratio,tolerated_dead}';
    wanted pgqueue.queues;
    setting record;
    broken text;
begin
    perform pgqueue.reject_job('-', '{}', coalesce(set_queue.queue, ''), 5, null, null, 1, null, null, null);
    if settings is null or jsonb_typeof(settings) <> 'object' then
        raise exception using errcode = 'PQ001', message = 'settings: expected a JSON object',
            hint = 'Name each setting: {"worker_limit": 5}.';
    end if;
    insert into pgqueue.queues (name) values (set_queue.queue) on conflict on constraint queues_one_row_a_name do nothing;
    select * into wanted from pgqueue.queues as q where q.name = set_queue.queue for update;
    for setting in select s.key, s.value from jsonb_each(settings) as s loop
        if setting.key <> all (known) then
            raise exception using errcode = 'PQ001', message = format('settings: %s is none', regexp_replace(left(setting.key, 40), '[[:cntrl:]]', '?', 'g')),
                hint = array_to_string(known, ', ') || '.';
        end if;
        begin
            wanted := jsonb_populate_record(wanted, jsonb_build_object(setting.key, case
                when setting.key like 'keep%' and jsonb_typeof(setting.value) = 'number'
                then to_jsonb(make_interval(secs => (setting.value #>> '{}')::double precision))
                when setting.key like 'keep%' and setting.value = '"none"' then '"0"'
                else setting.value end));
        exception when data_exception or datatype_mismatch then
            raise exception using errcode = 'PQ001', message = format('%s: %s', setting.key, regexp_replace(left(sqlerrm, 200), '[[:cntrl:]]', '?', 'g')),
                hint = 'keep_*: seconds, an interval such as "7 days", or "none"; timeout, target_wait, max_oldest: seconds; max_failure_ratio: 0 to 1; the others: a number; null: the default.';
        end;
    end loop;
    begin
        update pgqueue.queues as q
           set worker_limit = wanted.worker_limit, max_attempts = wanted.max_attempts, timeout = wanted.timeout,
               target_wait = wanted.target_wait, keep_completed = wanted.keep_completed,
               keep_cancelled = wanted.keep_cancelled, keep_dead = wanted.keep_dead, max_completed = wanted.max_completed,
               max_cancelled = wanted.max_cancelled, max_dead = wanted.max_dead, max_depth = wanted.max_depth,
               max_oldest = wanted.max_oldest, max_failure_ratio = wanted.max_failure_ratio, tolerated_dead = wanted.tolerated_dead
         where q.name = set_queue.queue;
    exception when check_violation then
        get stacked diagnostics broken = constraint_name;
        raise exception using errcode = 'PQ001', message = format('settings of %s: %s', set_queue.queue, replace(broken, '_', ' ')),
            hint = 'Limits and attempts are 1 or more, times are positive, a ratio is 0 to 1, what is kept is 0 or more.';
    end;
    if wanted.max_attempts is not null then
        perform nextval('pgqueue.attempts_set');  -- before the commit: whoever looks too early finds no change yet
    end if;
    perform pgqueue.audited('set_queue', set_queue.queue, details => settings);
    perform pg_notify('pgqueue_upkeep', 'queues')
      where settings ?| '{worker_limit,timeout}' and current_setting('pgqueue.notify', true) is distinct from 'off';
    return jsonb_strip_nulls(to_jsonb(wanted) - '{name,paused_at,resumes_at}'::text[]);
end $$;
comment on function pgqueue.set_queue(text, jsonb) is
'Changes settings of a queue, those that are given; null: the default. worker_limit, max_attempts, max_depth, max_completed, max_cancelled, max_dead, tolerated_dead: numbers; max_failure_ratio: 0 to 1; timeout, target_wait, max_oldest: seconds; keep_completed, keep_cancelled, keep_dead: seconds, an interval, or none. Returns all that are set. select pgqueue.set_queue(''mail'', ''{"worker_limit": 5, "keep_completed": "1 day"}'')';

-- How many unfinished jobs a queue has now. Called by operators: queues drain, which looks every now and then.
-- Locks: none. Index: ready_jobs_lane; scans the other tables.
create function pgqueue.count_queue(queue text, out ready bigint, out scheduled bigint, out blocked bigint, out running bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
begin
    select (select count(*) from pgqueue.ready_jobs as j where j.queue = count_queue.queue),
           (select count(*) from pgqueue.scheduled_jobs as j where j.queue = count_queue.queue),
           (select count(*) from pgqueue.blocked_jobs as j where j.queue = count_queue.queue),
           (select count(*) from pgqueue.running_jobs as j where j.queue = count_queue.queue)
      into ready, scheduled, blocked, running;
end $$;
comment on function pgqueue.count_queue(text) is
'How many unfinished jobs a queue has now, counted; pgqueue_bi.queue_health has what was counted a moment ago, at no cost.';
