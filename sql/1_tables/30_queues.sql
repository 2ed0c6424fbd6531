-- A row a queue that somebody has said something about; a queue without a row has the defaults.

create table pgqueue.queues (
    name              text             collate "C" not null,
    paused_at         timestamptz,
    worker_limit      integer,
    max_attempts      integer,
    timeout           double precision,
    target_wait       double precision,
    keep_completed    interval,
    keep_cancelled    interval,
    keep_dead         interval,
    max_completed     bigint,
    max_cancelled     bigint,
    max_dead          bigint,
    resumes_at        timestamptz,
    max_depth         bigint,
    max_oldest        double precision,
    max_failure_ratio double precision,
    tolerated_dead    bigint,
    constraint queues_one_row_a_name primary key (name),
    constraint queues_limit_leaves_a_slot check (worker_limit >= 1),
    constraint queues_attempts_that_a_job_can_have check (max_attempts between 1 and 32767),
    constraint queues_times_are_positive_and_finite check ((timeout > 0 and timeout < 'infinity') is not false
        and (target_wait > 0 and target_wait < 'infinity') is not false
        and (max_oldest > 0 and max_oldest < 'infinity') is not false),
    constraint queues_keep_for_no_negative_time check ((keep_completed >= '0') is not false
        and (keep_cancelled >= '0') is not false and (keep_dead >= '0') is not false),
    constraint queues_keep_no_negative_number check ((max_completed >= 0) is not false
        and (max_cancelled >= 0) is not false and (max_dead >= 0) is not false),
    constraint queues_depth_is_no_negative_number check (max_depth >= 0),
    constraint queues_failure_ratio_is_between_0_and_1 check (max_failure_ratio between 0 and 1),
    constraint queues_tolerate_no_negative_number check (tolerated_dead >= 0)
);

comment on table  pgqueue.queues is 'What operators have set for a queue, effective at once. No row, or null: the defaults.';
comment on column pgqueue.queues.name is 'The queue.';
comment on column pgqueue.queues.paused_at is 'Since when no job of it is claimed; null: not paused.';
comment on column pgqueue.queues.worker_limit is 'How many slots of each worker it may take; null: all of them.';
comment on column pgqueue.queues.max_attempts is 'Attempts that its jobs have when neither their task nor their enqueue says; null: 5.';
comment on column pgqueue.queues.timeout is 'Seconds that an attempt may take when neither its task nor its enqueue says; null: as long as it takes.';
comment on column pgqueue.queues.target_wait is 'Seconds that a job should wait at the most, from due to claimed; null: no target.';
comment on column pgqueue.queues.keep_completed is 'How long completed jobs are kept; 0: until they are rolled up; null: 7 days.';
comment on column pgqueue.queues.keep_cancelled is 'How long cancelled jobs are kept; 0: until they are rolled up; null: 7 days.';
comment on column pgqueue.queues.keep_dead is 'How long dead letters are kept; 0: until they are rolled up; null: for ever.';
comment on column pgqueue.queues.max_completed is 'How many completed jobs are kept, the latest, to the minute in which they ended (the hour, if that is two days ago); null: any number.';
comment on column pgqueue.queues.max_cancelled is 'How many cancelled jobs are kept, in the same way; null: any number.';
comment on column pgqueue.queues.max_dead is 'How many dead letters are kept, the latest; null: any number.';
comment on column pgqueue.queues.resumes_at is 'When a paused queue goes on by itself; null: when somebody resumes it.';
comment on column pgqueue.queues.max_depth is 'Ready jobs above which the queue is unhealthy; null: any number is healthy.';
comment on column pgqueue.queues.max_oldest is 'Seconds that the oldest ready job has waited, above which the queue is unhealthy; null: any age is healthy.';
comment on column pgqueue.queues.max_failure_ratio is 'The share of failed attempts, 0 to 1, above which the queue is unhealthy; null: any is healthy.';
comment on column pgqueue.queues.tolerated_dead is 'Dead letters above which the queue is unhealthy; null: any number is healthy. (How many are kept: max_dead.)';

-- Whether max_attempts was ever set for a queue. A sequence, because every enqueue wants to know: to look at a sequence's
-- last value is a function call, to look into a table costs a quarter of an enqueue.
create sequence pgqueue.attempts_set;
comment on sequence pgqueue.attempts_set is 'Has a value when a queue has, or had, a max_attempts of its own: then enqueue looks.';
