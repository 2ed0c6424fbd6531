-- The schema, its two counters and the protocol that it speaks.

create schema pgqueue;
comment on schema pgqueue is 'pgqueue: jobs in the application''s own database. Call its functions; read schema pgqueue_bi.';

create sequence pgqueue.job_ids;
comment on sequence pgqueue.job_ids is 'A job''s id, drawn once, the same in every table that the job passes through.';

-- Hazard: a position may only be drawn by the column default or by nextval inside the INSERT itself, never
-- into a variable first, never cached, never set back. The proof of the lane floors rests on it.
create sequence pgqueue.positions cache 1;
comment on sequence pgqueue.positions is 'A job''s place in its lane, drawn anew each time it becomes ready.';

create sequence pgqueue.worker_ids;
comment on sequence pgqueue.worker_ids is 'A worker process''s id.';

create function pgqueue.protocol(out newest integer, out oldest integer)
language sql immutable parallel safe
return (1, 1);
comment on function pgqueue.protocol() is
'The range of protocols that this schema serves. Whoever opens a connection of its own asks it before it touches data, a worker again every minute.';
