-- Takes the unique key of a new job, or does to the job that holds it what `how` asks for (options.unique of enqueue).
-- Called by enqueue, enqueue_many, replay. Waits for a transaction that has taken the same key and has not ended.
-- Locks: RowExclusive on unique_keys, the key's row when it is taken; those of meet_waiting. Index: the primary keys.
--
-- Why no race makes two. The primary key decides who is first, at every isolation level. Where its holder is, is noted
-- nowhere (each claim would have to); it is looked up here, and only when the key is held:
-- - One statement looks into all the tables. A move from one to the next is one transaction, so a snapshot has the
--   holder once; or not at all, and then it has ended.
-- - A holder that waits is locked where it was seen (but in the scope unfinished, when it is only kept: there it may as
--   well run). claim and promote skip what is locked, so it goes on waiting until this transaction has ended, and starts
--   when it can see what that wrote. If it had moved on it is not found there, and all is looked at again.
-- - A holder that runs is read and not locked: no ending may wait for a transaction that somebody keeps open. It may end
--   or come back a moment after the look; so it may a moment after the commit.
-- - A key is taken over from the holder that was seen, with its row locked, so one of many does. An ending that finds its
--   key locked leaves it behind (free_keys); a key whose holder has ended belongs to whoever comes first.
-- Above READ COMMITTED each of these steps raises 40001 when it meets what is younger than the snapshot.
create function pgqueue.take_unique_key(
    of_task text, of_key text, own_id bigint, how jsonb default null, job jsonb default null,
    out holder bigint, out outcome text
) language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    period constant interval := make_interval(secs => (how ->> 'period')::double precision);
    of_kind constant text := case when period is null then 'unique' else 'period' end;
    policy constant text := coalesce(how ->> 'on_conflict', 'keep');
    running_counts constant boolean := coalesce(how ->> 'scope', 'unfinished') = 'unfinished';
    held_until timestamptz;
    place text;
begin
    loop
        insert into pgqueue.unique_keys (kind, task, key, job_id, expires_at)
        values (of_kind, of_task, of_key, own_id, clock_timestamp() + period)
        on conflict (kind, task, key) do nothing;
        exit when found;
        select k.job_id, k.expires_at into holder, held_until from pgqueue.unique_keys as k
         where k.kind = of_kind and k.task = of_task and k.key = of_key;
        continue when not found;  -- its job ended between the two statements: once more
        if held_until <= clock_timestamp() then
            update pgqueue.unique_keys as k set job_id = own_id, expires_at = clock_timestamp() + period
             where k.kind = of_kind and k.task = of_task and k.key = of_key
               and k.job_id = holder and k.expires_at <= clock_timestamp();
            exit when found;
            continue;
        end if;
        if period is not null and policy = 'keep' then
            outcome := 'kept';
            return;
        end if;
        place := pgqueue.unfinished_as(holder);
        if period is null and (place is null or place = 'running' and not running_counts) then
            -- a job that waits for the end of this one comes first, if its turn has not been given to it yet
            continue when place is null and pgqueue.unblock(array[holder]) > 0;
            perform from pgqueue.unique_keys as k
              where k.kind = of_kind and k.task = of_task and k.key = of_key and k.job_id = holder for update;
            -- once more, now that nobody else can have the key: a replay may have brought it back
            if found and pgqueue.unfinished_as(holder) is not distinct from place then
                update pgqueue.unique_keys as k set job_id = own_id
                 where k.kind = of_kind and k.task = of_task and k.key = of_key;
                exit;
            end if;
        elsif place = 'running' and policy = 'follow_up' then
            insert into pgqueue.blocked_jobs (id, after_id, run_at, created_at, lane, attempt, max_attempts, crashes,
                                              queue, task, args, unique_key, options)
            select j.id, holder, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task,
                   j.args, j.unique_key, j.options
              from jsonb_populate_record(null::pgqueue.blocked_jobs, job) as j
            on conflict (after_id) do nothing;
            if found then
                holder := own_id;
                outcome := 'follow_up';
                return;
            end if;
            -- locked, as one that waits is: it starts when it can see what this transaction has written
            select b.id into holder from pgqueue.blocked_jobs as b where b.after_id = holder for key share;
            if found then
                outcome := 'kept';
                return;
            end if;
        elsif place is null or place = 'running' or running_counts and policy = 'keep' then
            outcome := 'kept';
            return;
        else
            outcome := pgqueue.meet_waiting(holder, how, job);
            if outcome is not null then
                return;
            end if;
        end if;
    end loop;
    holder := own_id;
    outcome := 'created';
end $$;
comment on function pgqueue.take_unique_key(text, text, bigint, jsonb, jsonb) is
'Private. outcome created: the key is now own_id''s; follow_up: the job waits in blocked_jobs for the holder''s end; else the holder, and what was done to it: kept, replaced, postponed or raised.';

-- Locks the waiting jobs that a bulk may change or hold back when it takes its unique keys: all at once, table by table, by id,
-- as cancel does. `is_new`: which of the jobs want their unique key, the others were found by their idempotency key.
-- Called by enqueue_many, before the first unique key. Locks: the jobs' rows, as take_unique_key and meet_waiting. Index: the
-- primary keys, blocked_jobs_one_follow_up_a_job.
--
-- A holder that comes by its key between this look and the bulk's turn is locked out of order, by meet_waiting.
create function pgqueue.lock_key_holders(jobs jsonb, is_new boolean[])
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
    holders bigint[];
    followed bigint[];
    only_kept boolean;
begin
    select array_agg(k.job_id), array_agg(k.job_id) filter (where j.policy = 'follow_up'),
           bool_and(j.policy in ('keep', 'follow_up'))
      into holders, followed, only_kept
      from (select g.task, g.unique_key, g.how -> 'period' is not null as for_a_while,
                   coalesce(g.how ->> 'scope', 'unfinished') = 'unfinished' as running_counts,
                   coalesce(g.how ->> 'on_conflict', 'keep') as policy
              from (select r.task, r.unique_key, r.options -> 'unique' as how
                      from rows from (jsonb_to_recordset(jobs) as (task text, unique_key text, options jsonb), unnest(is_new))
                           as r (task, unique_key, options, is_new)
                     where r.is_new and r.unique_key is not null) as g
             where g.how is not null) as j
     cross join lateral (
        select u.job_id from pgqueue.unique_keys as u
         where u.kind = case when j.for_a_while then 'period' else 'unique' end and u.task = j.task and u.key = j.unique_key
           and coalesce(u.expires_at > clock_timestamp(), true)
         limit 1) as k
     where j.policy <> 'keep' or not (j.running_counts or j.for_a_while);
    if only_kept then
        perform from pgqueue.scheduled_jobs as s where s.id = any (holders) order by s.id for key share;
        perform from pgqueue.ready_jobs as r where r.id = any (holders) order by r.id for key share;
    elsif holders is not null then
        perform from pgqueue.scheduled_jobs as s where s.id = any (holders) order by s.id for update;
        perform from pgqueue.ready_jobs as r where r.id = any (holders) order by r.id for update;
    end if;
    if followed is not null then
        perform from pgqueue.blocked_jobs as b where b.after_id = any (followed) order by b.id for key share;
    end if;
end $$;
comment on function pgqueue.lock_key_holders(jsonb, boolean[]) is
'Private. Locks the waiting holders of the unique keys of a bulk that may change them, in the order of their ids.';

-- Where an unfinished job of a unique key is: scheduled, ready or running; null: it has ended. Called by take_unique_key,
-- unblock. Locks: none. Index: the primary keys.
create function pgqueue.unfinished_as(job_id bigint)
returns text language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $$
begin
    return (select 'scheduled' from pgqueue.scheduled_jobs as s where s.id = unfinished_as.job_id
            union all select 'ready' from pgqueue.ready_jobs as r where r.id = unfinished_as.job_id
            union all select 'running' from pgqueue.running_jobs as a where a.id = unfinished_as.job_id);
end $$;
comment on function pgqueue.unfinished_as(bigint) is
'Private. The state of a job that holds a unique key: scheduled, ready or running; null when it has ended.';

-- Takes the idempotency key of a new job, or finds the job that holds it. Called by enqueue, enqueue_many.
-- Waits for a transaction that has taken the same key and has not ended.
-- Locks: RowExclusive on unique_keys, the key's row. Index: unique_keys_one_job_a_key.
create function pgqueue.take_idempotency_key(of_task text, of_key text, own_id bigint)
returns bigint language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
declare
    holder bigint;
begin
    loop
        insert into pgqueue.unique_keys as k (kind, task, key, job_id, expires_at)
        values ('idempotency', of_task, of_key, own_id, clock_timestamp() + interval '24 hours')
        on conflict (kind, task, key) do update
            set job_id = excluded.job_id, expires_at = excluded.expires_at
            where k.expires_at <= clock_timestamp();
        if found then
            return own_id;
        end if;
        select k.job_id into holder from pgqueue.unique_keys as k
         where k.kind = 'idempotency' and k.task = of_task and k.key = of_key;
        if found then
            return holder;
        end if;  -- else it expired between the two statements: once more
    end loop;
end $$;
comment on function pgqueue.take_idempotency_key(text, text, bigint) is
'Private. Returns own_id when the key is now its own, else the job that holds it.';
