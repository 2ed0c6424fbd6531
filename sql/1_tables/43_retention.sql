-- How far the history has been trimmed: what retention has looked at, and when it has to look again. Written by the leader
-- (upkeep/trim_history.sql), never touched by what enqueues, claims or ends jobs.

create table pgqueue.trims (
    relation    text        collate "C" not null,
    day         date,
    due_at      timestamptz not null default '-infinity',
    next_block  bigint      not null default 0,
    rules       jsonb,
    next_due_at timestamptz not null default 'infinity',
    seconds     double precision not null default 0,
    constraint trims_one_row_a_table primary key (relation)
) with (fillfactor = 50);

comment on table  pgqueue.trims is 'A row for each table that is trimmed: the partitions of finished_jobs, dead_letters, audit.';
comment on column pgqueue.trims.relation is 'The table, in schema pgqueue.';
comment on column pgqueue.trims.day is 'The UTC day of a partition; null: no partition of a day.';
comment on column pgqueue.trims.due_at is 'When the next pass over it begins; infinity: when the settings of a queue change.';
comment on column pgqueue.trims.next_block is 'Where the pass goes on: the blocks before it have been looked at.';
comment on column pgqueue.trims.rules is 'By which queue and state, before which time rows go in this pass; null: no pass is under way.';
comment on column pgqueue.trims.next_due_at is 'When the first of the rows will go that this pass has left there.';
comment on column pgqueue.trims.seconds is 'How long this pass has taken so far, in seconds.';

create table pgqueue.retention (
    settings text        not null,
    due_at   timestamptz not null,
    one      boolean     not null default true,
    constraint retention_one_row primary key (one),
    constraint retention_only_one check (one)
) with (fillfactor = 50);
insert into pgqueue.retention (settings, due_at) values ('', '-infinity');

comment on table  pgqueue.retention is 'One row: when something is to be dropped or trimmed.';
comment on column pgqueue.retention.settings is 'What the queues kept when that was reckoned: others make it due at once.';
comment on column pgqueue.retention.due_at is 'When something may be due again.';
comment on column pgqueue.retention.one is 'Always true: there is one row.';
