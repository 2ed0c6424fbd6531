-- What a step of a job returned when an earlier attempt took it; null: it has not been taken. Called by workers.
-- Locks: none. Index: job_steps_taken_once.
create function pgqueue.step_result(job_id bigint, name text)
returns jsonb language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
begin
    return (select s.result from pgqueue.job_steps as s
             where s.job_id = step_result.job_id and s.name = step_result.name);
end $$;
comment on function pgqueue.step_result(bigint, text) is
'What a step of a job returned; null when it has not been taken.';

-- Records that a step was taken, as the last statement of the transaction in which it was. Called by workers.
-- PQ004 when the lease was lost: then the transaction, and what the step wrote in it, must not commit.
-- Locks: key share on the job's row of running_jobs, so that a rescue waits for this commit. Index:
-- running_jobs_one_claim_a_job.
create function pgqueue.record_step(job_id bigint, lease bigint, name text, result jsonb)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    taken_in smallint;
begin
    select r.attempt into taken_in from pgqueue.running_jobs as r
     where r.id = record_step.job_id and r.lease = record_step.lease for key share;
    if not found then
        raise exception using errcode = 'PQ004', message = format('job %s: the lease was lost', coalesce(record_step.job_id::text, 'null')),
            hint = 'Another attempt may have begun; this one''s step is not recorded.';
    end if;
    if record_step.name is null then
        raise exception using errcode = 'PQ001', message = format('job %s: a step without a name', record_step.job_id),
            hint = 'By its name a later attempt finds what it returned.';
    end if;
    insert into pgqueue.job_steps (job_id, name, attempt, recorded_at, result)
    values (record_step.job_id, record_step.name, taken_in, clock_timestamp(), coalesce(record_step.result, 'null'))
    on conflict on constraint job_steps_taken_once do nothing;
    if not found then
        raise exception using errcode = 'PQ001', message = format('job %s: the step %s was taken before', record_step.job_id, pgqueue.as_given(record_step.name)),
            hint = 'Give each step of a job a name of its own.';
    end if;
end $$;
comment on function pgqueue.record_step(bigint, bigint, text, jsonb) is
'Records a step of a running job. PQ004 when the lease was lost.';
