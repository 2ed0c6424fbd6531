-- Tells those who wait for the end of these jobs. Called by the endings after they have moved them, in a statement of its own
-- (VOLATILE: a fresh snapshot), and only when there is a waiter at all. Locks: none, unless it notifies (then the
-- database-wide NOTIFY lock at commit). Index: waiters_one_row_a_period.
create function pgqueue.tell_waiters(ids bigint[])
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
    told constant bigint[] := ids || 0::bigint;  -- 0: who waits for whatever ends
    since constant timestamptz := now() - interval '35 seconds';
begin
    if cardinality(ids) = 0 or current_setting('pgqueue.notify', true) = 'off' then
        return;
    end if;
    if cardinality(ids) > 100 then  -- fewer waiters than jobs, most likely
        perform pg_notify(w.channel, w.job_id::text)
           from (select distinct s.channel, s.job_id from pgqueue.waiters as s
                  where s.period > since and s.job_id = any (told)) as w;
    else
        perform pg_notify(w.channel, w.job_id::text)
           from (select distinct s.channel, s.job_id
                   from generate_series(date_bin('10 seconds', since, '2000-01-01'), clock_timestamp(), '10 seconds') as p (period)
                  cross join unnest(told) as i (id)
                  cross join lateral (select h.channel, h.job_id from pgqueue.waiters as h
                                       where h.period = p.period and h.job_id = i.id limit 1000) as s) as w;
    end if;
end $$;
comment on function pgqueue.tell_waiters(bigint[]) is
'Private. Notifies the channels of those who wait for these jobs, with the job''s id.';
