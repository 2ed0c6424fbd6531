-- Notes that a worker's app does not have a task, so that operators see which worker lacks what.
-- Called by workers, once a task. Locks: the worker's row (not its key: claims go on).
create function pgqueue.lack_task(worker_id bigint, task text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgqueue.workers as w set unknown_tasks = w.unknown_tasks || lack_task.task
     where w.id = lack_task.worker_id and lack_task.task <> all (w.unknown_tasks);
end $$;
comment on function pgqueue.lack_task(bigint, text) is 'Adds a task to the worker''s unknown_tasks.';
