-- Makes scheduled jobs ready now: those that were put off, and those that wait for another attempt. Called by operators.
-- Locks: the jobs' rows (skip locked: one that is being promoted is ready anyway). Index: scheduled_jobs_one_row_a_job.
create function pgqueue.retry(ids bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    retried bigint[];
    lines text[];
begin
    with gone as (
        delete from pgqueue.scheduled_jobs as j
         where j.ctid = any (array(
             select s.ctid from pgqueue.scheduled_jobs as s where s.id = any (retry.ids) for update skip locked))
        returning j.id, j.run_at, j.created_at, j.lane, j.attempt, j.max_attempts, j.crashes, j.queue, j.task, j.args,
                  j.unique_key, j.options
    ), ready as (
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select g.id, clock_timestamp(), g.created_at, g.lane, g.attempt, g.max_attempts, g.crashes, g.queue, g.task, g.args,
               g.unique_key, g.options
          from gone as g order by g.run_at, g.id
    )
    select coalesce(array_agg(g.id order by g.id), '{}'), array_agg(g.queue) into retried, lines from gone as g;
    perform pgqueue.notify_sleepers(l.queue, l.jobs::integer)
       from (select q.queue, count(*) as jobs from unnest(lines) as q (queue) group by q.queue) as l;
    perform pgqueue.audited('retry', ids => retried);
    return retried;
end $$;
comment on function pgqueue.retry(bigint[]) is
'Makes scheduled jobs ready now. Returns the ids that were; the others are not scheduled. By filter: select pgqueue.retry(array(select id from pgqueue.find_jobs(of_states => ''{scheduled}'', of_task => ''charge'', max_rows => 1000)))';
