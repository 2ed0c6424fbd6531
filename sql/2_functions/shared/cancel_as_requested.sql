-- Cancels those of the jobs that somebody had asked to cancel while they ran; they wait again now, or are dead.
-- Called by fail, snooze, release and rescue after they have moved them. Locks: those of cancel.
-- Index: cancel_requests_one_row_a_job.
create function pgqueue.cancel_as_requested(ids bigint[])
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
begin
    perform pgqueue.cancel(array[c.job_id], c.reason)
       from pgqueue.cancel_requests as c where c.job_id = any (cancel_as_requested.ids);
end $$;
comment on function pgqueue.cancel_as_requested(bigint[]) is
'Private. Carries out the requests to cancel that came while the jobs ran.';
