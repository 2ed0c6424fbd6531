-- Adds a line to what an attempt leaves to be looked at, from outside of its handler: that it stopped its worker's loop.
-- Called by workers. Not fenced: it says what was and changes no job, and the attempt may have ended meanwhile.
-- Locks: none. Index: none is read. Commits asynchronously, as note_reports does.
create function pgqueue.note(job_id bigint, worker_id bigint, attempt integer, level text, line text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if note.job_id is null or note.worker_id is null or note.attempt is null or note.attempt not between 0 and 32767 then
        raise exception using errcode = 'PQ001', message = format('note: job_id %s, worker_id %s, attempt %s',
                coalesce(job_id::text, 'null'), coalesce(worker_id::text, 'null'), coalesce(attempt::text, 'null')),
            hint = 'Two ids, and an attempt from 0 to 32767.';
    end if;
    perform set_config('synchronous_commit', 'off', true);
    insert into pgqueue.job_reports (job_id, worker_id, reported_at, day, attempt, lines)
    values (note.job_id, note.worker_id, clock_timestamp(), pgqueue.history_day('job_reports'), note.attempt,
            jsonb_build_array(jsonb_build_object('at', clock_timestamp(), 'level', note.level, 'text', note.line)));
end $$;
comment on function pgqueue.note(bigint, bigint, integer, text, text) is
'Adds a line to the reports of an attempt. level: as in logs, warning for one.';
