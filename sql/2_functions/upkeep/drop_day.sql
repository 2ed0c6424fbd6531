-- Drops the oldest day partition that is past the longest retention of all queues: one a call.
-- Called by the leader when upkeep says that it is due.
-- Locks: ACCESS EXCLUSIVE on the partition and its parent, for the moment of the drop. Index: the catalog's.
--
-- While a lock is waited for, completions queue up behind it. So it is not asked for at all while anybody has held a lock on
-- either table for 50 ms: a reader that goes on for hours costs the completions nothing. Who comes in between is waited for
-- for 50 ms at the most. The files are removed after the locks.
create function pgqueue.drop_day(out dropped text, out blocked_by integer[])
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set timezone = 'UTC' set lock_timeout = '50ms'
as $$
declare
    -- what has not been rolled up is still to be read
    kept_from constant timestamptz := (select least(clock_timestamp() - pgqueue.longest_kept(), p.rolled_up_to)
                                         from pgqueue.rollup_progress as p);
    parent_name text;
    name text;
    holders text[];
begin
    blocked_by := '{}';
    perform set_config('synchronous_commit', 'off', true);
    if not pg_try_advisory_xact_lock(hashtextextended('pgqueue.retain', 0)) then
        return;
    end if;
    select d.parent, d.relation into parent_name, name
      from pgqueue.history_partitions() as d where d.day < kept_from::date order by d.day, d.relation limit 1;
    if name is null then
        return;
    end if;
    holders := array(select h.virtualtransaction from pgqueue.lock_holders(parent_name, name) as h);
    if cardinality(holders) > 0 then
        perform pg_sleep(0.05);
        blocked_by := array(select distinct h.pid from pgqueue.lock_holders(parent_name, name) as h
                             where h.virtualtransaction = any (holders) and h.pid is not null);
        if exists (select from pgqueue.lock_holders(parent_name, name) as h where h.virtualtransaction = any (holders)) then
            return;
        end if;
    end if;
    perform pgqueue.settle_runs(r.schedule)
       from (select distinct u.schedule from pgqueue.schedule_runs as u where u.state is null and u.job_id is not null) as r;
    begin
        execute format('lock table only pgqueue.%I in access exclusive mode', parent_name);
        execute format('drop table pgqueue.%I', name);
    exception when lock_not_available then
        blocked_by := array(select distinct h.pid from pgqueue.lock_holders(parent_name, name) as h where h.pid is not null);
        return;
    end;
    dropped := name;
end $$;
comment on function pgqueue.drop_day() is
'Drops the oldest partition that is past the longest retention, and returns its name; null: there is none, or it is in use. blocked_by: the processes that use it.';

-- The partitions of days. Called by retention. Locks: none. Index: the catalog's.
create function pgqueue.history_partitions(out parent text, out relation text, out day date)
returns setof record language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select p.relname::text, c.relname::text, to_date(right(c.relname, 8), 'YYYYMMDD')
      from pg_inherits as i join pg_class as c on c.oid = i.inhrelid join pg_class as p on p.oid = i.inhparent
     where i.inhparent = any ('{pgqueue.finished_jobs,pgqueue.job_failures,pgqueue.job_reports}'::regclass[])
       and c.relname ~ '_[0-9]{8}$';
end $$;
comment on function pgqueue.history_partitions() is 'Private. The partitions of the history that are days.';

-- Who holds a lock on one of two tables. Called by drop_day. Locks: none. Index: none.
create function pgqueue.lock_holders(one text, other text, out virtualtransaction text, out pid integer)
returns setof record language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select l.virtualtransaction, l.pid from pg_catalog.pg_locks as l
     where l.locktype = 'relation' and l.granted and l.pid is distinct from pg_backend_pid()
       and l.database = (select d.oid from pg_catalog.pg_database as d where d.datname = current_database())
       and l.relation in (to_regclass('pgqueue.' || quote_ident(one)), to_regclass('pgqueue.' || quote_ident(other)));
end $$;
comment on function pgqueue.lock_holders(text, text) is 'Private. The transactions, prepared ones included, that hold a lock on one of these tables.';
