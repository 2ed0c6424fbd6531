-- The rules by which jobs are enqueued, and what became of their due times.
create view pgqueue_bi.schedules as
select s.name::text as name, s.owner::text as owner, s.task::text as task, s.queue::text as queue, s.priority::integer as priority,
       s.max_attempts::integer as max_attempts, s.cron, s.seconds::text as seconds, s.every as every_seconds, s.at as once_at,
       s.at_startup, s.tz, s.starts_at, s.ends_at, s.jitter as jitter_seconds, s.grace as grace_seconds,
       s.missed::text as missed, s.missed_limit, s.overlap::text as overlap, s.created_at, s.paused_at,
       case when s.paused_at is null and isfinite(s.due_at) then s.due_at end as next_due_at,
       last.due_at as last_due_at, last.ran_at as last_ran_at, last.outcome::text as last_outcome, last.job_id as last_job_id,
       s.problem
  from pgqueue.schedules as s
  left join lateral (select r.due_at, r.ran_at, r.outcome, r.job_id from pgqueue.schedule_runs as r
                      where r.schedule = s.name order by r.due_at desc limit 1) as last on true;

comment on view   pgqueue_bi.schedules is 'Rules by which jobs are enqueued: by cron, at an interval, once, at a worker''s start.';
comment on column pgqueue_bi.schedules.name is 'The schedule.';
comment on column pgqueue_bi.schedules.owner is 'The app whose code defines it; null: made by hand.';
comment on column pgqueue_bi.schedules.task is 'The task of its jobs.';
comment on column pgqueue_bi.schedules.queue is 'The queue of its jobs.';
comment on column pgqueue_bi.schedules.priority is 'The priority of its jobs, 0 (first) to 9.';
comment on column pgqueue_bi.schedules.max_attempts is 'Attempts that each of its jobs has.';
comment on column pgqueue_bi.schedules.cron is 'Its cron expression; null: it has another timing.';
comment on column pgqueue_bi.schedules.seconds is 'Where the seconds of a cron expression of six fields are: first or last.';
comment on column pgqueue_bi.schedules.every_seconds is 'Seconds between two due times; null: it has another timing.';
comment on column pgqueue_bi.schedules.once_at is 'Its only due time; null: it has another timing.';
comment on column pgqueue_bi.schedules.at_startup is 'Whether it is due when a worker of its app starts.';
comment on column pgqueue_bi.schedules.tz is 'The time zone of the cron expression.';
comment on column pgqueue_bi.schedules.starts_at is 'No due time lies before it.';
comment on column pgqueue_bi.schedules.ends_at is 'No due time lies after it.';
comment on column pgqueue_bi.schedules.jitter_seconds is 'Seconds by which a job is delayed at the most, at random.';
comment on column pgqueue_bi.schedules.grace_seconds is 'Seconds by which a due time may be late and still count as on time.';
comment on column pgqueue_bi.schedules.missed is 'What becomes of missed due times: skip, once or all.';
comment on column pgqueue_bi.schedules.missed_limit is 'How many missed due times run at the most, when all of them should.';
comment on column pgqueue_bi.schedules.overlap is 'While its last job is unfinished: allow another, skip the due time, or queue one behind it.';
comment on column pgqueue_bi.schedules.created_at is 'When it was made.';
comment on column pgqueue_bi.schedules.paused_at is 'Since when it does not run; null: not paused.';
comment on column pgqueue_bi.schedules.next_due_at is 'Its next due time; null: paused, not computed yet, or never again.';
comment on column pgqueue_bi.schedules.last_due_at is 'Its last due time on record.';
comment on column pgqueue_bi.schedules.last_ran_at is 'When that one was ticked.';
comment on column pgqueue_bi.schedules.last_outcome is 'What became of it: see schedule_runs.outcome.';
comment on column pgqueue_bi.schedules.last_job_id is 'Its job.';
comment on column pgqueue_bi.schedules.problem is 'Why it cannot run; null: it can.';

create view pgqueue_bi.schedule_runs as
select r.schedule::text as schedule, r.due_at, r.ran_at,
       extract(epoch from r.ran_at - r.due_at)::double precision as late_seconds,
       r.outcome::text as outcome, r.missed, r.job_id,
       case
           when r.job_id is null then null
           when r.state is not null then nullif(r.state, 'unknown')::text
           when exists (select from pgqueue.ready_jobs as j where j.id = r.job_id) then 'ready'
           when exists (select from pgqueue.scheduled_jobs as j where j.id = r.job_id) then 'scheduled'
           when exists (select from pgqueue.blocked_jobs as j where j.id = r.job_id) then 'blocked'
           when exists (select from pgqueue.running_jobs as j where j.id = r.job_id) then 'running'
           when exists (select from pgqueue.dead_letters as j where j.id = r.job_id) then 'dead'
           else (select f.state::text from pgqueue.finished_jobs as f where f.id = r.job_id limit 1)
       end as job_state
  from pgqueue.schedule_runs as r;

comment on view   pgqueue_bi.schedule_runs is 'What became of each due time of a schedule: of the last 7 days, and the last 100 at least.';
comment on column pgqueue_bi.schedule_runs.schedule is 'The schedule.';
comment on column pgqueue_bi.schedule_runs.due_at is 'The due time.';
comment on column pgqueue_bi.schedule_runs.ran_at is 'When it was ticked.';
comment on column pgqueue_bi.schedule_runs.late_seconds is 'Seconds between the two.';
comment on column pgqueue_bi.schedule_runs.outcome is 'enqueued; caught_up (late, by the policy for missed ones); missed; overlapped (the job before was unfinished); joined (a job that waits already stands for it too); by_hand.';
comment on column pgqueue_bi.schedule_runs.missed is 'How many due times that did not run this row stands for, which have none of their own; of a missed one, itself too.';
comment on column pgqueue_bi.schedule_runs.job_id is 'The job that it made, or met; null: none.';
comment on column pgqueue_bi.schedule_runs.job_state is 'The state of that job; null: none, or not on record any more.';
