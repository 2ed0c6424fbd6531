-- Has the BRIN of the history cover what was written lately. Called by the leader when a round has found it grown by some MB.
-- Locks: SHARE UPDATE EXCLUSIVE on today's partition, if it is free; it waits for nobody. Index: finished_jobs_by_id.
--
-- A job that has ended is looked for by id or time in the ranges that may hold it, and in all that are not summarized yet. The
-- requests of autosummarize are carried out once a minute, and no more than 256 of them are remembered: at full speed that
-- would leave millions of rows to be read for each job that somebody looks at.
create function pgqueue.summarize_history()
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set lock_timeout = '10ms'
as $$
begin
    perform brin_summarize_new_values(i.indexrelid)
       from pg_catalog.pg_index as i
       join pg_catalog.pg_class as c on c.oid = i.indexrelid
       join pg_catalog.pg_am as a on a.oid = c.relam
      where i.indrelid in (to_regclass('pgqueue.finished_jobs' || to_char((clock_timestamp() at time zone 'UTC')::date, '_YYYYMMDD')),
                           'pgqueue.finished_jobs_overflow'::regclass)
        and a.amname = 'brin';
exception when lock_not_available then
    null;  -- autovacuum is at it, or somebody changes the partition: a round comes soon
end $$;
comment on function pgqueue.summarize_history() is 'Lets the latest of the history be found without reading all of it.';
