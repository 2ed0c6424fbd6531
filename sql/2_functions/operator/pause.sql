-- Stops and starts the claiming of a queue, at once, on every worker; running jobs go on. Called by operators.
-- A pause that has an end is ended by the leader of upkeep (upkeep/resume_due.sql): claim looks at paused_at alone.
-- Locks: the queue's row. Index: queues_one_row_a_name.
create function pgqueue.pause(queue text, until timestamptz default null)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if until is not null and not (until > clock_timestamp() and isfinite(until)) then
        raise exception using errcode = 'PQ001', message = format('until: %s is not ahead', until),
            hint = 'Without until the queue is paused until somebody resumes it.';
    end if;
    perform pgqueue.reject_job('-', '{}', coalesce(pause.queue, ''), 5, null, null, 1, null, null, null);
    insert into pgqueue.queues as q (name, paused_at, resumes_at) values (pause.queue, now(), until)
    on conflict (name) do update set paused_at = coalesce(q.paused_at, excluded.paused_at), resumes_at = excluded.resumes_at;
    perform pgqueue.audited('pause', pause.queue, details => jsonb_build_object('until', until));
end $$;
comment on function pgqueue.pause(text, timestamptz) is
'No job of the queue is claimed until resume, or until that time. Running jobs go on. Once more: until then instead.';

create function pgqueue.resume(queue text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update pgqueue.queues as q set paused_at = null, resumes_at = null
     where q.name = resume.queue and q.paused_at is not null;
    if found then
        perform pgqueue.audited('resume', resume.queue);
    end if;
    perform pgqueue.notify_sleepers(resume.queue, 1000);
end $$;
comment on function pgqueue.resume(text) is 'Jobs of the queue are claimed again.';
