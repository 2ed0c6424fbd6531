-- Who may call what: the whole API on one screen. The roles are made when missing and permitted; nothing needs them.
-- Functions run as their owner (security definer, pinned search_path): no role needs a right on a table.
-- Applied again after every migration.

revoke all on all functions in schema pgqueue from public;

do $$
declare
    name text;
begin
    foreach name in array array['pgqueue_producer', 'pgqueue_worker', 'pgqueue_monitor', 'pgqueue_admin'] loop
        if not exists (select from pg_catalog.pg_roles as r where r.rolname = name) then
            begin
                execute format('create role %I nologin', name);
            exception
                when unique_violation or duplicate_object then
                    null;  -- roles belong to the whole server: another database is being upgraded beside us
            end;
        end if;
    end loop;
    grant usage on schema pgqueue to pgqueue_producer, pgqueue_worker, pgqueue_admin;
    grant usage on schema pgqueue_bi to pgqueue_worker, pgqueue_monitor, pgqueue_admin;
    grant execute on function
        pgqueue.protocol,
        pgqueue.enqueue, pgqueue.enqueue_many,
        pgqueue.look, pgqueue.wait_for, pgqueue.endings_under_way, pgqueue.events_horizon, pgqueue.read_events
        to pgqueue_producer, pgqueue_worker, pgqueue_admin;
    grant execute on function
        pgqueue.register, pgqueue.queue_settings, pgqueue.hold_session, pgqueue.heartbeat,
        pgqueue.claim, pgqueue.forget_claim, pgqueue.forget_unheld, pgqueue.complete, pgqueue.complete_with_results, pgqueue.fail, pgqueue.snooze, pgqueue.release, pgqueue.lack_task,
        pgqueue.step_result, pgqueue.record_step, pgqueue.note, pgqueue.note_progress, pgqueue.note_reports, pgqueue.end_cancelled, pgqueue.end_expired, pgqueue.cancel_requests,
        pgqueue.fall_asleep, pgqueue.writers, pgqueue.wake_up,
        pgqueue.upkeep, pgqueue.rescue, pgqueue.crashed_jobs, pgqueue.promote, pgqueue.prove_floors, pgqueue.retain, pgqueue.drop_day, pgqueue.trim_history, pgqueue.count_depths, pgqueue.roll_up, pgqueue.summarize_history,
        pgqueue.keep_time, pgqueue.resign, pgqueue.due_schedules, pgqueue.tick, pgqueue.sync_schedules
        to pgqueue_worker, pgqueue_admin;
    grant execute on function
        pgqueue.cancel, pgqueue.cancel_matching, pgqueue.retry, pgqueue.delete_jobs, pgqueue.replay, pgqueue.discard, pgqueue.find_dead, pgqueue.find_jobs, pgqueue.job_record, pgqueue.find_waiting, pgqueue.pause, pgqueue.resume, pgqueue.set_queue, pgqueue.count_queue, pgqueue.stats, pgqueue.lane_heads, pgqueue.stop_workers,
        pgqueue.schedule, pgqueue.unschedule, pgqueue.pause_schedule, pgqueue.resume_schedule, pgqueue.run_schedule, pgqueue.schedule_record,
        pgqueue.count_sealed, pgqueue.find_sealed, pgqueue.reseal
        to pgqueue_admin;
    grant select on all tables in schema pgqueue_bi to pgqueue_monitor, pgqueue_admin;
    grant select on pgqueue_bi.health to pgqueue_worker;  -- the leader tells the hooks of alerts
exception
    when insufficient_privilege then
        raise notice 'pgqueue: the roles pgqueue_producer, _worker, _monitor, _admin were not made or granted: %', sqlerrm;
end $$;
