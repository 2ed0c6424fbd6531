-- Inserts one job, in the caller's transaction: the job exists if and only if that transaction commits.
-- Called by producers, through any driver or plain SQL. NULL means the default, for every argument but task.
-- options.unique says what the unique_key means: {"scope": "unfinished" | "waiting"} or {"period": seconds}, "on_conflict":
-- "keep" | "replace" | "debounce" | "raise_priority" | "follow_up", "max_delay": seconds. How: shared/take_keys.sql.
-- Locks: RowExclusive on ready_jobs or scheduled_jobs, for a key those of take_unique_key. Index: the primary keys.
create function pgqueue.enqueue(
    task            text,
    args            jsonb            default '{}',
    queue           text             default 'default',
    priority        integer          default 5,
    run_at          timestamptz      default null,
    delay           double precision default null,
    max_attempts    integer          default null,
    unique_key      text             default null,
    idempotency_key text             default null,
    options         jsonb            default null,
    out id          bigint,
    out created     boolean,
    out outcome     text
) language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    own_id constant bigint := nextval('pgqueue.job_ids');
    line constant text := coalesce(queue, 'default');
    lane constant smallint := case when priority between 0 and 9 then 2 * priority + 1 else 11 end;
    due timestamptz := run_at;
    how jsonb;
begin
    if args is null then
        args := '{}';
    end if;
    if max_attempts is null and pg_sequence_last_value('pgqueue.attempts_set') is not null then
        max_attempts := (select q.max_attempts from pgqueue.queues as q where q.name = line);
    end if;
    if not (coalesce(length(task) between 1 and 200 and jsonb_typeof(args) = 'object', false)
            and length(line) between 1 and 100 and line !~ '[[:cntrl:]*"'']' and task !~ '[[:cntrl:]]'
            and coalesce(priority between 0 and 9, true) and coalesce(max_attempts between 1 and 32767, true)
            and delay is null and run_at is null and unique_key is null and idempotency_key is null and options is null)
    then
        perform pgqueue.reject_job(task, args, queue, priority, run_at, delay, max_attempts,
                                   unique_key, idempotency_key, options);
        if unique_key is not null or idempotency_key is not null then
            enqueue.id := own_id;
            enqueue.outcome := 'created';
            if idempotency_key is not null then
                enqueue.id := pgqueue.take_idempotency_key(task, idempotency_key, own_id);
            end if;
            if enqueue.id <> own_id then
                enqueue.outcome := 'kept';
            elsif unique_key is not null then
                how := options -> 'unique';
                if how is null then
                    insert into pgqueue.unique_keys (kind, task, key, job_id)
                    values ('unique', enqueue.task, enqueue.unique_key, own_id)
                    on conflict on constraint unique_keys_one_job_a_key do nothing;
                    if not found then
                        select k.holder, k.outcome into id, outcome
                          from pgqueue.take_unique_key(task, unique_key, own_id) as k;
                    end if;
                else
                    select k.holder, k.outcome into id, outcome
                      from pgqueue.take_unique_key(task, unique_key, own_id, how, pgqueue.job_to_be(
                               own_id, coalesce(due, clock_timestamp() + make_interval(secs => delay)), priority,
                               max_attempts, queue, task, args, unique_key, options)) as k;
                    options := pgqueue.options_to_store(options);
                end if;
                if enqueue.id <> own_id and idempotency_key is not null then
                    -- the same enqueue, repeated, means the same job
                    update pgqueue.unique_keys as k set job_id = enqueue.id
                     where k.kind = 'idempotency' and k.task = enqueue.task and k.key = enqueue.idempotency_key;
                end if;
            end if;
            if enqueue.outcome <> 'created' then
                enqueue.created := enqueue.outcome = 'follow_up';
                return;
            end if;
        end if;
        if delay is not null then
            due := clock_timestamp() + make_interval(secs => delay);
        end if;
        if due is not null then
            -- The clock is read by the statement that holds the lock: no job is ever scheduled for the past.
            insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue,
                                                task, args, unique_key, options)
            select own_id, due, now(), lane, 0, coalesce(enqueue.max_attempts, 5), 0, line, enqueue.task, enqueue.args,
                   enqueue.unique_key, enqueue.options
             where due > clock_timestamp();
            if found then
                perform pgqueue.wake_leader(due);
                enqueue.id := own_id;
                enqueue.created := true;
                enqueue.outcome := 'created';
                return;
            end if;
        end if;
    end if;
    insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                    unique_key, options)
    values (own_id, coalesce(due, now()), now(), lane, 0, coalesce(enqueue.max_attempts, 5), 0, line, enqueue.task,
            enqueue.args, enqueue.unique_key, enqueue.options);
    -- A statement of its own, after the insert: its snapshot sees every worker that fell asleep before (sleep.sql).
    if current_setting('transaction_isolation') <> 'read committed'
       or exists (select from pgqueue.sleepers as s
                   where s.queue = line and s.period > now() - interval '35 seconds'
                     and s.slept_at > clock_timestamp() - interval '25 seconds')
    then
        perform pgqueue.notify_sleepers(line, 1);
    end if;
    enqueue.id := own_id;
    enqueue.created := true;
    enqueue.outcome := 'created';
end $$;
comment on function pgqueue.enqueue(text, jsonb, text, integer, timestamptz, double precision, integer, text, text, jsonb) is
'Enqueues one job in the caller''s transaction. Returns its id; created is false when unique_key or idempotency_key led to a job that exists already, and outcome says what became of that one: kept, replaced, postponed or raised (follow_up: a job was created that runs after it); options.unique, {scope, period, on_conflict, max_delay}, asks for it. select id from pgqueue.enqueue(''send_welcome'', ''{"user_id": 7}'', queue => ''email'')';
