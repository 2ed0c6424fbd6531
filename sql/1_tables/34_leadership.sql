-- Who led the last round of upkeep, and when. Correctness never rests on it.

create table pgqueue.leadership (
    supervisor_id bigint      not null,
    led_at        timestamptz not null,
    resumed_at    timestamptz not null,
    one           boolean     not null default true,
    constraint leadership_one_row primary key (one),
    constraint leadership_only_one check (one)
) with (fillfactor = 50);
insert into pgqueue.leadership (supervisor_id, led_at, resumed_at) values (0, '-infinity', '-infinity');

-- Empty when the server has recovered since a round was last led: from a crash, or as a standby that was promoted. Then commits
-- may have been forgotten, and no session holds a lock. An unlogged table is the one thing that every recovery leaves a trace in,
-- and the trace is seen without any right, on every provider's server.
create unlogged table pgqueue.recovery_seen (
    seen_at timestamptz not null
);

comment on table  pgqueue.recovery_seen is 'One row, unlogged: no recovery of the server since then. Empty: one that nobody has taken notice of.';
comment on column pgqueue.recovery_seen.seen_at is 'When the leader took notice of it.';

comment on table  pgqueue.leadership is 'One row: who led the last round of upkeep.';
comment on column pgqueue.leadership.supervisor_id is 'The supervisor that led it; 0: nobody yet, or it has resigned.';
comment on column pgqueue.leadership.led_at is 'When.';
comment on column pgqueue.leadership.resumed_at is 'When rounds began again after a gap in which nobody could beat, or after the server recovered: leases count from then.';
comment on column pgqueue.leadership.one is 'Always true: there is one row.';
