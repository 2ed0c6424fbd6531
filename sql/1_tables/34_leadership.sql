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

comment on table  pgqueue.leadership is 'One row: who led the last round of upkeep.';
comment on column pgqueue.leadership.supervisor_id is 'The supervisor that led it; 0: nobody yet, or it has resigned.';
comment on column pgqueue.leadership.led_at is 'When.';
comment on column pgqueue.leadership.resumed_at is 'When rounds began again after a gap in which nobody could beat: leases count from then.';
comment on column pgqueue.leadership.one is 'Always true: there is one row.';
