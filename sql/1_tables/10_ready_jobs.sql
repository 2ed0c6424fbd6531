-- ready: may be claimed now.
-- In: enqueue, promote, release, rescue, replay. Out: claim.
-- A lane is (queue, priority, returned or not): 2 * priority + 1, or + 0 for a job that came back without fault
-- of its own. A lane is served in the order of positions.

create table pgqueue.ready_jobs (
    id           bigint      not null,
    position     bigint      not null default nextval('pgqueue.positions'),
    run_at       timestamptz not null,
    created_at   timestamptz not null,
    lane         smallint    not null,
    attempt      smallint    not null,
    max_attempts smallint    not null,
    crashes      smallint    not null,
    queue        text        collate "C" not null,
    task         text        collate "C" not null,
    args         jsonb       not null,
    unique_key   text        collate "C",
    options      jsonb,
    constraint ready_jobs_one_row_a_job primary key (id)
);
create unique index ready_jobs_lane on pgqueue.ready_jobs (queue, lane, position);

comment on table  pgqueue.ready_jobs is 'Jobs that may be claimed now, in lanes. One row a job; a job is in one state table only.';
comment on column pgqueue.ready_jobs.id is 'The job''s id, the same for its whole life.';
comment on column pgqueue.ready_jobs.position is 'Place in the lane; drawn by the default only (see pgqueue.positions).';
comment on column pgqueue.ready_jobs.run_at is 'When the job became due.';
comment on column pgqueue.ready_jobs.created_at is 'When the job was enqueued.';
comment on column pgqueue.ready_jobs.lane is '2 * priority (0 first ... 9) + 1, or + 0 when returned by a release or a rescue.';
comment on column pgqueue.ready_jobs.attempt is 'Attempts made so far; counted at claim.';
comment on column pgqueue.ready_jobs.max_attempts is 'Attempts after which a failure makes a dead letter.';
comment on column pgqueue.ready_jobs.crashes is 'How often a worker process died while it ran this job, or may have.';
comment on column pgqueue.ready_jobs.queue is 'The named line that the job waits in.';
comment on column pgqueue.ready_jobs.task is 'The registered function, by name.';
comment on column pgqueue.ready_jobs.args is 'The job''s arguments, one JSON object.';
comment on column pgqueue.ready_jobs.unique_key is 'Set when the job holds a row of unique_keys; freed when it ends.';
comment on column pgqueue.ready_jobs.options is 'What few jobs need, null for the rest: tags, metadata, retry.';
