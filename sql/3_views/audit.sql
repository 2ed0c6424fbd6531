-- What operators did.
create view pgqueue_bi.audit as
select a.id, a.acted_at, a.role, a.actor, a.verb::text as verb, a.target::text as target, a.jobs,
       array_to_string(a.job_ids, ', ') as job_ids, a.filter, a.details
  from pgqueue.audit as a;

comment on view   pgqueue_bi.audit is 'What operators did: cancel, replay, pause, ... One row a call that changed something.';
comment on column pgqueue_bi.audit.id is 'The order in which they did it.';
comment on column pgqueue_bi.audit.acted_at is 'When.';
comment on column pgqueue_bi.audit.role is 'Who: the role that had logged in.';
comment on column pgqueue_bi.audit.actor is 'Who, in its own words: the setting pgqueue.actor; the command says user@host.';
comment on column pgqueue_bi.audit.verb is 'What: the function that was called.';
comment on column pgqueue_bi.audit.target is 'The queue, schedule or worker; null: jobs.';
comment on column pgqueue_bi.audit.jobs is 'How many jobs it changed; null: it is not about jobs.';
comment on column pgqueue_bi.audit.job_ids is 'The first 20 of them.';
comment on column pgqueue_bi.audit.filter is 'How they were chosen, in the caller''s words; null: by id.';
comment on column pgqueue_bi.audit.details is 'What else was said: a reason, the settings of a queue. Never a job''s args.';
