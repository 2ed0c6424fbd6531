-- Proven lower bounds, so that no claim and no promotion walks over dead index entries.
-- How a bound is proven: upkeep/prove_floors.sql.

create table pgqueue.lane_floors (
    queue  text     collate "C" not null,
    floors bigint[] not null,
    constraint lane_floors_one_row_a_queue primary key (queue),
    constraint lane_floors_cover_every_lane check (cardinality(floors) = 20)
) with (fillfactor = 50);
comment on table  pgqueue.lane_floors is 'Per queue, the position below which no job of a lane is or will ever be.';
comment on column pgqueue.lane_floors.queue is 'The queue.';
comment on column pgqueue.lane_floors.floors is 'The floor of each lane: element lane + 1.';

create table pgqueue.floor_proofs (
    subject           text        collate "C" not null,
    next_position     bigint,
    next_run_at       timestamptz,
    proven_run_at     timestamptz,
    lockers           text[]      collate "C" not null,
    server_started_at timestamptz not null,
    constraint floor_proofs_one_row_a_table primary key (subject)
) with (fillfactor = 50);
comment on table  pgqueue.floor_proofs is 'Proofs under way: a bound that holds once the lockers of then have ended.';
comment on column pgqueue.floor_proofs.subject is 'ready_jobs or scheduled_jobs.';
comment on column pgqueue.floor_proofs.next_position is 'ready_jobs: the next value of pgqueue.positions, read before the lockers were.';
comment on column pgqueue.floor_proofs.next_run_at is 'scheduled_jobs: the clock before the lockers were read.';
comment on column pgqueue.floor_proofs.proven_run_at is 'scheduled_jobs: no job is or will ever be due before this; promotion starts here.';
comment on column pgqueue.floor_proofs.lockers is 'The virtual transactions that could still bring an older row.';
comment on column pgqueue.floor_proofs.server_started_at is 'The server start that the lockers'' names belong to; another start voids them.';
