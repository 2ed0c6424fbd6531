-- Stops and starts the claiming of a queue, at once, on every worker; running jobs go on. Called by operators.
-- Locks: the queue's row. Index: queues_one_row_a_name.
create function pgqueue.pause(queue text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into pgqueue.queues as q (name, paused_at) values (pause.queue, now())
    on conflict (name) do update set paused_at = coalesce(q.paused_at, excluded.paused_at);
end $$;
comment on function pgqueue.pause(text) is 'No job of the queue is claimed until resume. Running jobs go on.';

create function pgqueue.resume(queue text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgqueue.queues as q set paused_at = null where q.name = resume.queue;
    perform pgqueue.notify_sleepers(resume.queue, 1000);
end $$;
comment on function pgqueue.resume(text) is 'Jobs of the queue are claimed again.';
