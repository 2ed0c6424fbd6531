-- A row a queue that somebody has said something about; a queue without a row has the defaults.

create table pgqueue.queues (
    name      text        collate "C" not null,
    paused_at timestamptz,
    constraint queues_one_row_a_name primary key (name)
);

comment on table  pgqueue.queues is 'What operators have set for a queue, effective at once. No row: the defaults.';
comment on column pgqueue.queues.name is 'The queue.';
comment on column pgqueue.queues.paused_at is 'Since when no job of it is claimed; null: not paused.';
