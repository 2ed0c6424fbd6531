-- The failures that a job has had, oldest first, as a JSON array; a dead letter keeps this copy.
-- Called by fail, rescue. Locks: none. Index: job_failures_by_job.
create function pgqueue.earlier_failures(job_id bigint)
returns jsonb language plpgsql stable
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
begin
    return (select coalesce(jsonb_agg(jsonb_build_object('attempt', f.attempt, 'failed_at', f.failed_at, 'error', f.error,
                                'message', f.message, 'traceback', f.traceback) order by f.failed_at), '[]')
              from pgqueue.job_failures as f where f.job_id = earlier_failures.job_id);
end $$;
comment on function pgqueue.earlier_failures(bigint) is 'Private. Every failed attempt of a job that is on record, oldest first.';
