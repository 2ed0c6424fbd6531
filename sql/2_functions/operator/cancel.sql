-- Cancels jobs in any state. One that waits or is dead is cancelled at once; one that runs is asked for, its worker told.
-- Called by operators and producers, in their transaction.
-- Locks: the jobs' rows table by table, by id, those of running_jobs in the order in which they lie, as endings do; then those of
-- free_keys (sql/README.md: the order of locks). Index: the primary keys.
--
-- A job moves while it is looked for, forwards and back; so the tables are looked through again for what was not found.
-- The row of a running job is locked while the request is written: an ending that came first is seen here, and one
-- that comes after sees the request.
create function pgqueue.cancel(ids bigint[], reason text default 'cancelled')
returns table (id bigint, outcome text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    today constant date := pgqueue.history_day('finished_jobs');
    missing bigint[] := array(select distinct i.id from unnest(cancel.ids) as i (id) order by i.id);
    ended bigint[];
    all_ended bigint[] := '{}';
    asked bigint[];
    all_asked bigint[] := '{}';
    held_keys jsonb;
    held_now jsonb;
begin
    for round in 1 .. 3 loop
        exit when cardinality(missing) = 0;
        with scheduled as (
            delete from pgqueue.scheduled_jobs as j where j.id = any (missing)
            returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                      j.unique_key, j.options
        ), ready as (
            delete from pgqueue.ready_jobs as j where j.id = any (missing)
            returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                      j.unique_key, j.options
        ), dead as (
            delete from pgqueue.dead_letters as j where j.id = any (missing)
            returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                      j.unique_key, j.options, j.worker_id, j.claimed_at
        ), blocked as (
            delete from pgqueue.blocked_jobs as j where j.id = any (missing)
            returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                      j.unique_key, j.options
        ), gone as (
            select s.*, null::bigint as worker_id, null::timestamptz as claimed_at, true as holds_key from scheduled as s
            union all
            select r.*, null, null, true from ready as r
            union all
            select d.*, false from dead as d
            union all
            select b.*, null, null, false from blocked as b
        ), history as (
            insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane,
                                               attempt, max_attempts, crashes, queue, task, state, args, unique_key,
                                               options, reason)
            select g.id, g.worker_id, g.run_at, g.created_at, g.claimed_at, clock_timestamp(), today, g.lane, g.attempt,
                   g.max_attempts, g.crashes, g.queue, g.task, 'cancelled', g.args, g.unique_key, g.options, coalesce(cancel.reason, 'cancelled')
              from gone as g
        ), answered as (
            delete from pgqueue.cancel_requests as c where c.job_id = any (missing) and c.job_id in (select g.id from gone as g)
        )
        select coalesce(array_agg(g.id), '{}'), jsonb_agg(jsonb_build_array(g.task, g.unique_key, g.id))
                   filter (where g.holds_key and g.unique_key is not null)
          into ended, held_now from gone as g;
        held_keys := coalesce(held_keys || held_now, held_now, held_keys);
        return query select e.id, 'cancelled' from unnest(ended) as e (id);
        with running as (
            select r.id, r.worker_id, r.lease from pgqueue.running_jobs as r
             where r.id = any (missing) order by r.ctid for update
        ), requested as (
            insert into pgqueue.cancel_requests (job_id, worker_id, lease, requested_at, reason)
            select r.id, r.worker_id, r.lease, clock_timestamp(), coalesce(cancel.reason, 'cancelled') from running as r
            on conflict (job_id) do update
               set worker_id = excluded.worker_id, lease = excluded.lease, requested_at = excluded.requested_at,
                   reason = excluded.reason
        )
        select coalesce(array_agg(r.id), '{}') into asked from running as r;
        perform pg_notify('pgqueue_' || w.worker_id, 'cancel')
           from (select distinct c.worker_id from pgqueue.cancel_requests as c where c.job_id = any (asked)) as w
          where current_setting('pgqueue.notify', true) is distinct from 'off';
        return query select a.id, 'asked' from unnest(asked) as a (id);
        missing := array(select m.id from unnest(missing) as m (id) where m.id <> all (ended || asked));
        all_ended := all_ended || ended;
        all_asked := all_asked || asked;
    end loop;
    if held_keys is not null then  -- when no job is waited for any more
        perform pgqueue.free_keys(held_keys, with_periods => true);
    end if;
    if exists (select from pgqueue.waiters as w where w.period > now() - interval '35 seconds') then
        perform pgqueue.tell_waiters(all_ended);
    end if;
    perform pgqueue.audited('cancel', ids => all_ended || all_asked, details => jsonb_build_object('reason', cancel.reason));
    return query select m.id, 'finished' from unnest(missing) as m (id)
                  where exists (select from pgqueue.finished_jobs as f where f.id = m.id);
end $$;
comment on function pgqueue.cancel(bigint[], text) is
'Cancels jobs. A row a job that exists: cancelled (it waited, or was dead), asked (it runs; its worker is told, and it ends as cancelled, or as completed when it finishes first) or finished (it had ended before).';
