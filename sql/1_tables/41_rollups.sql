-- What happened, by minute, hour and day, for views: written by the leader (upkeep/roll_up.sql) from the history of minutes that
-- are over, never touched by what enqueues, claims or ends jobs.
--
-- Times are kept as histograms that can be added up: bucket 0 is up to 0.1 ms, and each of the others is a factor of 1.2
-- wide, up to 90 years in bucket 170. Only buckets that have something in them are stored. A percentile is the middle of
-- the bucket that it falls into: wrong by a tenth at the most.

create function pgqueue.bucket(seconds double precision)
returns smallint language sql immutable parallel safe
return least(170, ceil(ln(greatest(bucket.seconds, 0.0001) / 0.0001) / ln(1.2::double precision)))::smallint;
comment on function pgqueue.bucket(double precision) is 'Private. The bucket of the histograms of rollups that a time falls into.';

-- plpgsql, because a loop over some dozens of buckets takes a fifth of the time of a query over them.
create function pgqueue.percentile(buckets smallint[], counts bigint[], share double precision)
returns double precision language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    jobs bigint := 0;
    up_to bigint := 0;
begin
    for i in 1 .. cardinality(counts) loop
        jobs := jobs + counts[i];
    end loop;
    for i in 1 .. cardinality(buckets) loop
        up_to := up_to + counts[i];
        if up_to >= share * jobs then
            return 0.0001 * 1.2 ^ (buckets[i] - 0.5)::double precision;
        end if;
    end loop;
    return null;
end $$;
comment on function pgqueue.percentile(smallint[], bigint[], double precision) is
'Private. The time in seconds that this share of the jobs has not exceeded; null: there were none.';

create table pgqueue.rollups (
    period       text             collate "C" not null,
    bucket_at    timestamptz      not null,
    queue        text             collate "C" not null,
    task         text             collate "C" not null,
    enqueued     bigint           not null,
    completed    bigint           not null,
    cancelled    bigint           not null,
    failed       bigint           not null,
    dead         bigint           not null,
    depth        bigint           not null,
    targeted     bigint           not null,
    in_target    bigint           not null,
    wait_seconds double precision not null,
    run_seconds  double precision not null,
    wait_buckets smallint[]       not null,
    wait_counts  bigint[]         not null,
    run_buckets  smallint[]       not null,
    run_counts   bigint[]         not null,
    wait_p50     double precision generated always as (pgqueue.percentile(wait_buckets, wait_counts, 0.5)) stored,
    wait_p95     double precision generated always as (pgqueue.percentile(wait_buckets, wait_counts, 0.95)) stored,
    wait_p99     double precision generated always as (pgqueue.percentile(wait_buckets, wait_counts, 0.99)) stored,
    run_p50      double precision generated always as (pgqueue.percentile(run_buckets, run_counts, 0.5)) stored,
    run_p95      double precision generated always as (pgqueue.percentile(run_buckets, run_counts, 0.95)) stored,
    run_p99      double precision generated always as (pgqueue.percentile(run_buckets, run_counts, 0.99)) stored,
    constraint rollups_one_row_a_bucket_and_task primary key (period, bucket_at, queue, task),
    constraint rollups_known_periods check (period in ('minute', 'hour', 'day', 'last_hour')),
    constraint rollups_a_count_for_each_bucket check (cardinality(wait_buckets) = cardinality(wait_counts)
                                                      and cardinality(run_buckets) = cardinality(run_counts))
) with (fillfactor = 70);  -- the hour and the day under way are updated once a minute

comment on table  pgqueue.rollups is 'What happened to the jobs of a queue and task in a minute, hour or day (UTC), or in the hour up to the last minute. Only where something happened, or jobs were unfinished.';
comment on column pgqueue.rollups.period is 'minute (kept for 2 days), hour (for 100), day (for ever), or last_hour: the 60 minutes up to rollup_progress.rolled_up_to.';
comment on column pgqueue.rollups.bucket_at is 'When the period began.';
comment on column pgqueue.rollups.queue is 'The queue.';
comment on column pgqueue.rollups.task is 'The task; empty in rows of last_hour that stand for a whole queue.';
comment on column pgqueue.rollups.enqueued is 'Jobs that were enqueued, or replayed: the change of depth plus what ended. Derived, for an enqueue counts nothing; over several minutes it is right, in one it may be a few seconds off.';
comment on column pgqueue.rollups.completed is 'Jobs that completed.';
comment on column pgqueue.rollups.cancelled is 'Jobs that were cancelled, discarded dead letters among them.';
comment on column pgqueue.rollups.failed is 'Attempts that failed or crashed, the last ones among them.';
comment on column pgqueue.rollups.dead is 'Jobs that became dead letters.';
comment on column pgqueue.rollups.depth is 'Unfinished jobs at its end, as counted last.';
comment on column pgqueue.rollups.targeted is 'Completed jobs whose queue had a target_wait when they were rolled up.';
comment on column pgqueue.rollups.in_target is 'Those of them that had not waited longer than that.';
comment on column pgqueue.rollups.wait_seconds is 'Seconds that the completed jobs had waited together, each from due to the claim of its last attempt.';
comment on column pgqueue.rollups.run_seconds is 'Seconds that the last attempts of the completed jobs took together, each from claim to end.';
comment on column pgqueue.rollups.wait_buckets is 'The histogram of waits: its buckets that hold jobs, in ascending order,';
comment on column pgqueue.rollups.wait_counts is 'and how many completed jobs each of them holds.';
comment on column pgqueue.rollups.run_buckets is 'The histogram of run times: as wait_buckets,';
comment on column pgqueue.rollups.run_counts is 'and how many completed jobs each of them holds.';
comment on column pgqueue.rollups.wait_p50 is 'The median wait in seconds; null: nothing completed.';
comment on column pgqueue.rollups.wait_p95 is 'Seconds that 95% of the waits did not exceed.';
comment on column pgqueue.rollups.wait_p99 is 'Seconds that 99% of the waits did not exceed.';
comment on column pgqueue.rollups.run_p50 is 'The median run time in seconds; null: nothing completed.';
comment on column pgqueue.rollups.run_p95 is 'Seconds that 95% of the run times did not exceed.';
comment on column pgqueue.rollups.run_p99 is 'Seconds that 99% of the run times did not exceed.';

create table pgqueue.rollup_progress (
    rolled_up_to      timestamptz not null,
    proven_to         timestamptz not null,
    next_to           timestamptz,
    writers           text[]      collate "C" not null,
    server_started_at timestamptz not null,
    one               boolean     not null default true,
    constraint rollup_progress_one_row primary key (one),
    constraint rollup_progress_only_one check (one)
) with (fillfactor = 50);
insert into pgqueue.rollup_progress (rolled_up_to, proven_to, writers, server_started_at)
values ('-infinity', '-infinity', '{}', '-infinity');

comment on table  pgqueue.rollup_progress is 'One row: up to where the history has been rolled up, and how far that may go.';
comment on column pgqueue.rollup_progress.rolled_up_to is 'The end of the last minute that was rolled up.';
comment on column pgqueue.rollup_progress.proven_to is 'Every ending before this is there to be read.';
comment on column pgqueue.rollup_progress.next_to is 'A clock that becomes proven_to once the writers have ended; null: no proof is under way.';
comment on column pgqueue.rollup_progress.writers is 'The virtual transactions that could still bring an ending before next_to.';
comment on column pgqueue.rollup_progress.server_started_at is 'The server start that the writers'' names belong to; another start voids the proof.';
comment on column pgqueue.rollup_progress.one is 'Always true: there is one row.';
