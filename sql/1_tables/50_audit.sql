-- What operators did: a row for each call that changed something, in its transaction. Kept for 400 days (upkeep/trim_history.sql).

create table pgqueue.audit (
    id       bigint      not null generated always as identity,
    acted_at timestamptz not null,
    role     text        not null,
    actor    text,
    verb     text        collate "C" not null,
    target   text        collate "C",
    jobs     integer,
    job_ids  bigint[],
    filter   text,
    details  jsonb,
    constraint audit_one_row_a_call primary key (id)
);

comment on table  pgqueue.audit is 'What operators did, oldest first: cancel, replay, pause, ... One row a call that changed something.';
comment on column pgqueue.audit.id is 'The order in which they did it.';
comment on column pgqueue.audit.acted_at is 'When.';
comment on column pgqueue.audit.role is 'Who: the role that had logged in.';
comment on column pgqueue.audit.actor is 'Who, in its own words: the setting pgqueue.actor; the command says user@host.';
comment on column pgqueue.audit.verb is 'What: the function that was called.';
comment on column pgqueue.audit.target is 'The queue, schedule or worker; null: jobs.';
comment on column pgqueue.audit.jobs is 'How many jobs it changed; null: it is not about jobs.';
comment on column pgqueue.audit.job_ids is 'The first 20 of them.';
comment on column pgqueue.audit.filter is 'How they were chosen, in the caller''s words: the setting pgqueue.filter; null: by id.';
comment on column pgqueue.audit.details is 'What else was said: a reason, the settings of a queue. Never a job''s args.';
comment on sequence pgqueue.audit_id_seq is 'The ids of pgqueue.audit.';
