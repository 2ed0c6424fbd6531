-- The partition that an ending of now belongs to: today (UTC) if that partition exists, else the overflow.
-- Called by the endings. Locks: none. Index: the catalog's.
create function pgqueue.history_day(parent text)
returns date language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    today constant date := (clock_timestamp() at time zone 'UTC')::date;
begin
    if to_regclass('pgqueue.' || parent || to_char(today, '_YYYYMMDD')) is null then
        return '-infinity';
    end if;
    return today;
end $$;
comment on function pgqueue.history_day(text) is
'Private. The value of `day` for an ending of now: today, or -infinity (the overflow partition) when today has no partition.';
