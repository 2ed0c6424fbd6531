-- Says how far running jobs have come. Called by workers for their handlers, at most 4 times a second and job.
-- A lost lease notes nothing. Locks: the jobs' rows of job_progress. Index: running_jobs_one_claim_a_job,
-- job_progress_one_row_a_job. Commits asynchronously: the next note says more.
create function pgqueue.note_progress(notes jsonb)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    if not pgqueue.are_claims(notes) then
        perform pgqueue.reject_claims('notes', notes);
    end if;
    perform set_config('synchronous_commit', 'off', true);
    insert into pgqueue.job_progress as p (job_id, lease, noted_at, progress)
    select held.id, held.lease, clock_timestamp(), n.progress
      from (select distinct on (r.id) r.id, r.lease, r.progress
              from jsonb_to_recordset(note_progress.notes) as r (id numeric, lease numeric, progress jsonb)
             where r.progress is not null order by r.id) as n
     cross join lateral (select h.id, h.lease from pgqueue.running_jobs as h
                          where h.id = n.id::bigint and h.lease = n.lease::bigint limit 1) as held
    on conflict (job_id) do update
       set lease = excluded.lease, noted_at = excluded.noted_at, progress = excluded.progress;
end $$;
comment on function pgqueue.note_progress(jsonb) is
'Notes how far running jobs have come. notes: an array of {id, lease, progress}, a job once; progress: {done, total, message, metadata}.';

-- Keeps what attempts have left to be looked at. Called by workers before they end them, for those that left something.
-- A lost lease keeps nothing. Locks: the jobs' rows of job_progress. Index: as above.
create function pgqueue.note_reports(reports jsonb)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    today constant date := pgqueue.history_day('job_reports');
begin
    if not pgqueue.are_claims(reports) then
        perform pgqueue.reject_claims('reports', reports);
    end if;
    perform set_config('synchronous_commit', 'off', true);
    with report as (
        select held.id, held.lease, held.worker_id, held.attempt, r.progress, r.lines
          from jsonb_to_recordset(note_reports.reports) as r (id numeric, lease numeric, progress jsonb, lines jsonb)
         cross join lateral (select h.id, h.lease, h.worker_id, h.attempt from pgqueue.running_jobs as h
                              where h.id = r.id::bigint and h.lease = r.lease::bigint limit 1) as held
    ), kept as (
        insert into pgqueue.job_reports (job_id, worker_id, reported_at, day, attempt, progress, lines)
        select r.id, r.worker_id, clock_timestamp(), today, r.attempt, r.progress, r.lines from report as r order by r.id
    )
    delete from pgqueue.job_progress as p
     where p.job_id = any (array(select r.id from report as r order by r.id));
end $$;
comment on function pgqueue.note_reports(jsonb) is
'Keeps the last progress and log lines of attempts that are about to end. reports: an array of {id, lease, progress, lines}; lines: an array of {at, level, text}.';
