-- The history of schedules: a due time is in it once, whatever happened. The last 100 of each schedule, and all of the
-- last 7 days; tick forgets older ones.

create table pgqueue.schedule_runs (
    schedule text        collate "C" not null,
    due_at   timestamptz not null,
    ran_at   timestamptz not null,
    outcome  text        collate "C" not null,
    missed   integer     not null default 0,
    job_id   bigint,
    state    text        collate "C",
    constraint schedule_runs_one_a_due_time primary key (schedule, due_at)
);
create index schedule_runs_unsettled on pgqueue.schedule_runs (schedule, due_at) where state is null and job_id is not null;

comment on table  pgqueue.schedule_runs is 'What became of each due time of a schedule. One row a due time: that is what makes it run once.';
comment on column pgqueue.schedule_runs.schedule is 'The schedule.';
comment on column pgqueue.schedule_runs.due_at is 'The due time.';
comment on column pgqueue.schedule_runs.ran_at is 'When it was ticked.';
comment on column pgqueue.schedule_runs.outcome is 'enqueued; caught_up (late, by the policy for missed ones); missed; overlapped (the job before was unfinished); joined (a job that waits already stands for it too); by_hand.';
comment on column pgqueue.schedule_runs.missed is 'How many due times that did not run this row stands for, which have none of their own; of a missed one, itself too.';
comment on column pgqueue.schedule_runs.job_id is 'The job that it made, or met; null: none.';
comment on column pgqueue.schedule_runs.state is 'How that job ended; unknown: it was forgotten before that was noted; null: not known yet.';
