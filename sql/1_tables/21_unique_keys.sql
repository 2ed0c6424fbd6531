-- Who holds a key.
-- kind 'unique': the unfinished job of (task, key) whose turn it is; the row goes when the job ends.
-- kind 'period': one job of (task, key) for a while, also after it has ended; the row goes when the time is over.
-- kind 'idempotency': the same enqueue repeated makes one job for 24 h, also after that job has ended.

create table pgqueue.unique_keys (
    kind       text        collate "C" not null,
    task       text        collate "C" not null,
    key        text        collate "C" not null,
    job_id     bigint      not null,
    expires_at timestamptz,
    constraint unique_keys_one_job_a_key primary key (kind, task, key)
);
create index unique_keys_expiry on pgqueue.unique_keys (expires_at) where expires_at is not null;

comment on table  pgqueue.unique_keys is 'Which job holds a key. The primary key is what makes uniqueness true at every isolation level.';
comment on column pgqueue.unique_keys.kind is 'unique, period or idempotency.';
comment on column pgqueue.unique_keys.task is 'The task that the key is scoped to.';
comment on column pgqueue.unique_keys.key is 'The key, as the producer gave it.';
comment on column pgqueue.unique_keys.job_id is 'The job that holds it.';
comment on column pgqueue.unique_keys.expires_at is 'period, idempotency: when the key may be taken again; unique: null.';
