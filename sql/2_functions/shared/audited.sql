-- Writes down what an operator has done. Called by every function in operator/ that changes something, in its transaction.
-- Who it was: the role that logged in, and the setting pgqueue.actor.
-- Locks: none but the insert's. Index: none.
create function pgqueue.audited(verb text, target text default null, ids bigint[] default null, details jsonb default null)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if cardinality(ids) = 0 then
        return;  -- it changed nothing
    end if;
    if ids is not null then
        perform nextval('pgqueue.job_ids');  -- a number is lost, and what there is is counted again: see depths_due
    end if;
    insert into pgqueue.audit (acted_at, role, actor, verb, target, jobs, job_ids, filter, details)
    values (clock_timestamp(), session_user, left(nullif(current_setting('pgqueue.actor', true), ''), 200), verb, target,
            cardinality(ids), ids[1:20],
            case when ids is not null then left(nullif(current_setting('pgqueue.filter', true), ''), 1000) end,
            nullif(jsonb_strip_nulls(details), '{}'));
end $$;
comment on function pgqueue.audited(text, text, bigint[], jsonb) is
'Private. Notes in pgqueue.audit that an operator''s function has changed something.';
