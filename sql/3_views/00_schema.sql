-- The public reading side: stable, versioned, without payloads. Never read the tables.
create schema pgqueue_bi;
comment on schema pgqueue_bi is 'pgqueue for analysts and BI tools: views that stay stable. Times are timestamptz named *_at, durations double precision named *_seconds.';
