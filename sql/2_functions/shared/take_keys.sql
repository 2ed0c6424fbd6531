-- Takes the keys of a new job, or finds the job that holds one.
-- Called by enqueue, enqueue_many, replay. Waits for an uncommitted holder of the same key.
-- Locks: RowExclusive on unique_keys, the key's row. Index: unique_keys_one_job_a_key.
-- Above READ COMMITTED a conflict with a row younger than the snapshot raises 40001; uniqueness still holds.
create function pgqueue.take_keys(task text, unique_key text, idempotency_key text, job_id bigint)
returns bigint language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    holder bigint;
begin
    if take_keys.idempotency_key is not null then
        loop
            insert into pgqueue.unique_keys as k (kind, task, key, job_id, expires_at)
            values ('idempotency', take_keys.task, take_keys.idempotency_key, take_keys.job_id,
                    clock_timestamp() + interval '24 hours')
            on conflict (kind, task, key) do update
                set job_id = excluded.job_id, expires_at = excluded.expires_at
                where k.expires_at <= clock_timestamp();
            exit when found;
            select k.job_id into holder from pgqueue.unique_keys as k
             where k.kind = 'idempotency' and k.task = take_keys.task and k.key = take_keys.idempotency_key;
            if found then
                return holder;
            end if;  -- else it expired between the two statements: once more
        end loop;
    end if;
    if take_keys.unique_key is not null then
        loop
            insert into pgqueue.unique_keys (kind, task, key, job_id)
            values ('unique', take_keys.task, take_keys.unique_key, take_keys.job_id)
            on conflict (kind, task, key) do nothing;
            exit when found;
            select k.job_id into holder from pgqueue.unique_keys as k
             where k.kind = 'unique' and k.task = take_keys.task and k.key = take_keys.unique_key;
            if found then
                update pgqueue.unique_keys as k set job_id = holder
                 where k.kind = 'idempotency' and k.task = take_keys.task and k.key = take_keys.idempotency_key;
                return holder;
            end if;  -- else its job ended between the two statements: once more
        end loop;
    end if;
    return take_keys.job_id;
end $$;
comment on function pgqueue.take_keys(text, text, text, bigint) is
'Private. Returns job_id when the keys are now its own, else the job that holds one of them.';
