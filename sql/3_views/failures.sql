-- Failed attempts by what caused them, grouped by upkeep/roll_up.sql.
create view pgqueue_bi.failures as
select g.fingerprint::text as fingerprint, g.queue::text as queue, g.task::text as task, g.error, g.failures, g.dead, g.first_seen_at,
       g.last_seen_at, g.message as sample_message, g.job_id as sample_job_id
  from pgqueue.failure_groups as g;

comment on view   pgqueue_bi.failures is 'Failed attempts, grouped by what caused them; up to the last minute that was rolled up, forgotten 100 days after the last.';
comment on column pgqueue_bi.failures.fingerprint is 'The same for errors that come from the same place; where there is none, the class of the error.';
comment on column pgqueue_bi.failures.queue is 'The queue.';
comment on column pgqueue_bi.failures.task is 'The task.';
comment on column pgqueue_bi.failures.error is 'The class of the latest error.';
comment on column pgqueue_bi.failures.failures is 'How many attempts have failed.';
comment on column pgqueue_bi.failures.dead is 'How many of them made a dead letter.';
comment on column pgqueue_bi.failures.first_seen_at is 'When the first of them failed.';
comment on column pgqueue_bi.failures.last_seen_at is 'When the latest of them failed.';
comment on column pgqueue_bi.failures.sample_message is 'The text of the latest error, 1,000 characters of it at the most.';
comment on column pgqueue_bi.failures.sample_job_id is 'The job of the latest error.';
