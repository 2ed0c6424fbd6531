-- Schedules: stored rules by which jobs are enqueued again and again. Whoever leads upkeep computes the due times (in
-- Python) and ticks (upkeep/tick.sql). due_at is compared and set, so no due time is ever ticked twice.

create table pgqueue.schedules (
    name         text             collate "C" not null,
    owner        text             collate "C",
    task         text             collate "C" not null,
    args         jsonb            not null,
    queue        text             collate "C" not null,
    priority     smallint         not null,
    max_attempts smallint         not null,
    options      jsonb,
    cron         text,
    seconds      text             collate "C",
    every        double precision,
    at           timestamptz,
    at_startup   boolean          not null,
    tz           text             not null,
    starts_at    timestamptz,
    ends_at      timestamptz,
    jitter       double precision not null,
    grace        double precision not null,
    missed       text             collate "C" not null,
    missed_limit integer          not null,
    overlap      text             collate "C" not null,
    created_at   timestamptz      not null,
    changed_at   timestamptz      not null,
    paused_at    timestamptz,
    due_at       timestamptz      not null,
    problem      text,
    constraint schedules_one_row_a_name primary key (name),
    constraint schedules_one_timing_each check (num_nonnulls(cron, every, at, nullif(at_startup, false)) = 1),
    constraint schedules_known_policies check (missed in ('skip', 'once', 'all') and overlap in ('allow', 'skip', 'queue')
                                               and coalesce(seconds in ('first', 'last'), true))
);
create index schedules_due on pgqueue.schedules (due_at) where paused_at is null;

comment on table  pgqueue.schedules is 'Rules by which jobs are enqueued: by cron, at an interval, once, at a worker''s start.';
comment on column pgqueue.schedules.name is 'What it is called, by people and by its history.';
comment on column pgqueue.schedules.owner is 'The app whose code defines it, and removes it when the code no longer does; null: made by hand.';
comment on column pgqueue.schedules.task is 'The task of its jobs.';
comment on column pgqueue.schedules.args is 'The args of its jobs.';
comment on column pgqueue.schedules.queue is 'The queue of its jobs.';
comment on column pgqueue.schedules.priority is 'The priority of its jobs, 0 (first) to 9.';
comment on column pgqueue.schedules.max_attempts is 'Attempts that each of its jobs has.';
comment on column pgqueue.schedules.options is 'What few jobs need: tags, metadata, timeout, expiry; as for enqueue.';
comment on column pgqueue.schedules.cron is 'A cron expression of five fields, or of six when `seconds` says where the seconds are.';
comment on column pgqueue.schedules.seconds is 'Where the seconds of a cron expression of six fields are: first or last.';
comment on column pgqueue.schedules.every is 'Seconds between two due times, counted from starts_at or created_at.';
comment on column pgqueue.schedules.at is 'The only due time.';
comment on column pgqueue.schedules.at_startup is 'Due when a worker of its app starts; starts within `grace` of each other count as one.';
comment on column pgqueue.schedules.tz is 'The time zone of the cron expression.';
comment on column pgqueue.schedules.starts_at is 'No due time lies before it.';
comment on column pgqueue.schedules.ends_at is 'No due time lies after it.';
comment on column pgqueue.schedules.jitter is 'Seconds by which a job is delayed at the most, at random.';
comment on column pgqueue.schedules.grace is 'Seconds by which a due time may be late and still count as on time.';
comment on column pgqueue.schedules.missed is 'What becomes of due times that were missed: skip, once (the latest runs), all (the latest missed_limit run).';
comment on column pgqueue.schedules.missed_limit is 'How many missed due times run at the most, when all of them should.';
comment on column pgqueue.schedules.overlap is 'While its last job is unfinished: allow another, skip the due time, or queue one behind it.';
comment on column pgqueue.schedules.created_at is 'When it was made.';
comment on column pgqueue.schedules.changed_at is 'When its timing was last changed, or it was resumed: due times count after that.';
comment on column pgqueue.schedules.paused_at is 'Since when it does not run; null: not paused.';
comment on column pgqueue.schedules.due_at is 'Its next due time; -infinity: to be computed; infinity: never again.';
comment on column pgqueue.schedules.problem is 'Why it cannot run; null: it can.';
