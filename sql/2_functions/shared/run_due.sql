-- One due time of a schedule whose row the caller holds: its job and its row of the history, both or none.
-- Called by tick and run_schedule. Returns nulls when the due time has had its run.
-- Locks: those of enqueue. Index: schedule_runs_one_a_due_time.
create function pgqueue.run_due(
    held pgqueue.schedules, due_at timestamptz, policy text, missed integer, jitters boolean, out job_id bigint, out outcome text
) language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    met text;
    stored constant jsonb := coalesce(held.options, '{}') || jsonb_build_object('schedule', held.name, 'due_at', run_due.due_at);
begin
    if exists (select from pgqueue.schedule_runs as r where r.schedule = held.name and r.due_at = run_due.due_at) then
        return;
    end if;
    outcome := policy;
    if policy <> 'missed' then
        select e.id, e.outcome into job_id, met
          from pgqueue.enqueue(
              held.task, held.args, held.queue, held.priority,
              delay => case when jitters and held.jitter > 0 then random() * held.jitter end,
              max_attempts => held.max_attempts,
              unique_key => case when held.overlap <> 'allow' then 'schedule:' || held.name end,
              options => case held.overlap
                  when 'queue' then stored || '{"unique": {"on_conflict": "follow_up"}}' else stored end) as e;
        if met = 'kept' then
            outcome := case held.overlap when 'skip' then 'overlapped' else 'joined' end;
        end if;
    end if;
    insert into pgqueue.schedule_runs (schedule, due_at, ran_at, outcome, missed, job_id)
    values (held.name, run_due.due_at, clock_timestamp(), run_due.outcome, run_due.missed, run_due.job_id);
end $$;
comment on function pgqueue.run_due(pgqueue.schedules, timestamptz, text, integer, boolean) is
'Private. Enqueues the job of a due time, unless it was missed, and notes it. Returns the job and the outcome; nulls: it has had its run.';

-- Notes how the jobs of a schedule's runs have ended, as far as they have, so that it is known when they are forgotten.
-- Called by tick and retain. A job that is on no record any more is noted as well, or it would be looked up for ever.
-- Locks: the runs' rows (skip locked). Index: schedule_runs_unsettled, those of look.
create function pgqueue.settle_runs(of_schedule text)
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_indexscan = on set enable_indexonlyscan = on
as $$
declare
    run record;
begin
    for run in
        with open as materialized (
            select r.due_at, r.job_id from pgqueue.schedule_runs as r
             where r.schedule = of_schedule and r.state is null and r.job_id is not null
             order by r.due_at limit 20 for update skip locked
        )
        select o.due_at, coalesce(j.state, 'unknown') as state
          from open as o left join pgqueue.look(array(select u.job_id from open as u)) as j on j.id = o.job_id
    loop
        update pgqueue.schedule_runs as r set state = run.state
         where r.schedule = of_schedule and r.due_at = run.due_at
           and run.state in ('completed', 'cancelled', 'dead', 'unknown');
    end loop;
end $$;
comment on function pgqueue.settle_runs(text) is 'Private. Notes the final states of the jobs of a schedule''s earlier runs, at most 20.';
