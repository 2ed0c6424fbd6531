-- Workers that somebody wants to stop. Their supervisors read it with each round of upkeep, so it works behind any pooler.
-- In: stop_workers. Out: upkeep, when the worker is registered no more.

create table pgqueue.stop_requests (
    worker_id    bigint      not null,
    requested_at timestamptz not null,
    constraint stop_requests_one_row_a_worker primary key (worker_id)
);

comment on table  pgqueue.stop_requests is 'Workers that are to stop: they finish what they run, and are not started again.';
comment on column pgqueue.stop_requests.worker_id is 'The worker.';
comment on column pgqueue.stop_requests.requested_at is 'When it was asked for.';
