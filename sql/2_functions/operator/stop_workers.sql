-- Asks workers to stop: each claims nothing more, finishes what it runs within its drain limit, and is not started again.
-- Called by operators. Their supervisors are told, and look with each round of upkeep.
-- Locks: none but the inserts'. Index: workers_one_row_a_process.
create function pgqueue.stop_workers(ids bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    worker record;
    asked bigint[] := '{}';
begin
    for worker in
        select w.id, w.supervisor_id, w.host, w.pid from pgqueue.workers as w
         where w.id = any (stop_workers.ids) order by w.id
    loop
        insert into pgqueue.stop_requests (worker_id, requested_at) values (worker.id, clock_timestamp())
        on conflict on constraint stop_requests_one_row_a_worker do nothing;
        asked := asked || worker.id;
        perform pgqueue.audited('stop_workers', worker.id::text,
                                details => jsonb_build_object('host', worker.host, 'pid', worker.pid));
        perform pg_notify('pgqueue_upkeep_' || worker.supervisor_id, 'workers')
          where current_setting('pgqueue.notify', true) is distinct from 'off';
    end loop;
    return asked;
end $$;
comment on function pgqueue.stop_workers(bigint[]) is
'Asks workers to finish what they run and to stop. Returns the ids that are registered. When all workers of a supervisor have stopped it ends, with exit code 0: whatever keeps that process may start it again.';
