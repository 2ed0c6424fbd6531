-- Steps of jobs that have been taken, so that a later attempt does not take them again.
-- In: record_step. Out: upkeep, when the job has ended.

create table pgqueue.job_steps (
    job_id      bigint      not null,
    name        text        collate "C" not null,
    attempt     smallint    not null,
    recorded_at timestamptz not null,
    result      jsonb       not null,
    constraint job_steps_taken_once primary key (job_id, name)
);
create index job_steps_by_time on pgqueue.job_steps (recorded_at);

comment on table  pgqueue.job_steps is 'Steps of jobs that have been taken. One row a job and name.';
comment on column pgqueue.job_steps.job_id is 'The job.';
comment on column pgqueue.job_steps.name is 'The step, as its handler calls it.';
comment on column pgqueue.job_steps.attempt is 'The attempt that took it.';
comment on column pgqueue.job_steps.recorded_at is 'When it was recorded.';
comment on column pgqueue.job_steps.result is 'What it returned; JSON null for nothing.';
