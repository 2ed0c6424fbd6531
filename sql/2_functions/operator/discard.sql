-- Moves dead letters to the history as cancelled, reason discarded. Called by operators.
-- Locks: the letters' rows, by id, as cancel does. Index: dead_letters_one_row_a_job.
create function pgqueue.discard(ids bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    today constant date := pgqueue.history_day('finished_jobs');
    discarded bigint[];
begin
    with gone as (
        delete from pgqueue.dead_letters as d
         where d.id = any (discard.ids)
        returning d.id, d.worker_id, d.run_at, d.created_at, d.claimed_at, d.lane, d.attempt, d.max_attempts, d.crashes,
                  d.queue, d.task, d.args, d.unique_key, d.options
    ), history as (
        insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane, attempt,
                                           max_attempts, crashes, queue, task, state, args, unique_key, options, reason)
        select g.id, g.worker_id, g.run_at, g.created_at, g.claimed_at, clock_timestamp(), today, g.lane, g.attempt,
               g.max_attempts, g.crashes, g.queue, g.task, 'cancelled', g.args, g.unique_key, g.options, 'discarded'
          from gone as g
    )
    select coalesce(array_agg(g.id), '{}') into discarded from gone as g;
    perform pgqueue.audited('discard', ids => discarded);
    return discarded;
end $$;
comment on function pgqueue.discard(bigint[]) is
'Moves dead letters to the history as cancelled, reason discarded. Returns the ids that were.';
