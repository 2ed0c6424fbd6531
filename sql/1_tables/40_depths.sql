-- How many jobs there are, counted by the leader every now and then, for views and thresholds: to count a backlog is a scan
-- of it, which no reader should make. Never read by what enqueues, claims or ends jobs.

create table pgqueue.depths (
    queue             text    collate "C" not null,
    task              text    collate "C" not null,
    ready             bigint  not null,
    scheduled         bigint  not null,
    blocked           bigint  not null,
    running           bigint  not null,
    dead              bigint  not null,
    oldest_ready_at   timestamptz,
    oldest_claimed_at timestamptz,
    rolled_up         bigint  not null default 0,
    carried           bigint  not null default 0,
    constraint depths_one_row_a_task primary key (queue, task)
) with (fillfactor = 50);  -- room for HOT updates in the page

comment on table  pgqueue.depths is 'Unfinished jobs and dead letters by queue and task, as last counted.';
comment on column pgqueue.depths.queue is 'The queue.';
comment on column pgqueue.depths.task is 'The task.';
comment on column pgqueue.depths.ready is 'Jobs that were ready.';
comment on column pgqueue.depths.scheduled is 'Jobs that waited for their time.';
comment on column pgqueue.depths.blocked is 'Jobs that waited for another one to end.';
comment on column pgqueue.depths.running is 'Jobs in the hands of a worker.';
comment on column pgqueue.depths.dead is 'Dead letters.';
comment on column pgqueue.depths.oldest_ready_at is 'When the ready job became due that has waited longest; null: none was ready.';
comment on column pgqueue.depths.oldest_claimed_at is 'When the running job was claimed that has run longest; null: none ran.';
comment on column pgqueue.depths.rolled_up is 'How many of its jobs were unfinished when a minute was last rolled up.';
comment on column pgqueue.depths.carried is 'Jobs that a minute seems to have lost, which the next one gives back: never above 0.';

create table pgqueue.depth_count (
    counted_at    timestamptz      not null,
    seconds       double precision not null,
    next_id       bigint           not null,
    next_position bigint           not null,
    is_moving     boolean          not null,
    one           boolean          not null default true,
    constraint depth_count_one_row primary key (one),
    constraint depth_count_only_one check (one)
) with (fillfactor = 50);
insert into pgqueue.depth_count (counted_at, seconds, next_id, next_position, is_moving) values ('-infinity', 0, 0, 0, true);

comment on table  pgqueue.depth_count is 'One row: the last count of depths.';
comment on column pgqueue.depth_count.counted_at is 'When it began: what was committed then is in it.';
comment on column pgqueue.depth_count.seconds is 'How long it took, in seconds. The next one comes after twenty times that at the earliest.';
comment on column pgqueue.depth_count.next_id is 'The next value of pgqueue.job_ids before it: nothing has changed while that stands,';
comment on column pgqueue.depth_count.next_position is 'and the next value of pgqueue.positions,';
comment on column pgqueue.depth_count.is_moving is 'unless jobs were ready or running, or have been cancelled or discarded since.';
comment on column pgqueue.depth_count.one is 'Always true: there is one row.';
