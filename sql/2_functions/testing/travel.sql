-- Lets time pass for the jobs that wait: all their times move back by `seconds`, the clock stays as it is.
-- Called by tests alone (pgqueue.testing.travel), as the owner: it is granted to nobody. Locks: the rows it moves.
-- Scans its tables. What becomes due is due in the order in which it would have been; promote makes it ready.
--
-- Hazard: no job is ever scheduled for the past, or promotion, which starts at a proven mark, would never see it. So the
-- clock is read under the table's lock, as by enqueue, and what is due gets the moments right after it, one each.
create function pgqueue.travel(seconds double precision)
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
declare
    passed constant interval := make_interval(secs => travel.seconds);
    present timestamptz;
    due integer;
begin
    if not (travel.seconds >= 0 and travel.seconds <= 315360000) then
        raise exception using errcode = 'PQ001', message = format('travel: %s is out of range', travel.seconds),
            hint = 'Seconds, from 0 to ten years: time goes forward only.';
    end if;
    lock table pgqueue.scheduled_jobs in row exclusive mode;
    present := clock_timestamp();
    with moved as (
        select s.id, s.run_at - passed as run_at,
               row_number() over (order by s.run_at, s.id) * interval '1 microsecond' as turn
          from pgqueue.scheduled_jobs as s
    )
    update pgqueue.scheduled_jobs as s
       set run_at = greatest(m.run_at, present + m.turn), created_at = s.created_at - passed,
           options = case when s.options ? 'expires_at' then jsonb_set(s.options, '{expires_at}',
               to_jsonb((s.options ->> 'expires_at')::timestamptz - passed)) else s.options end
      from moved as m where m.id = s.id;
    update pgqueue.ready_jobs as r
       set run_at = r.run_at - passed, created_at = r.created_at - passed,
           options = case when r.options ? 'expires_at' then jsonb_set(r.options, '{expires_at}',
               to_jsonb((r.options ->> 'expires_at')::timestamptz - passed)) else r.options end;
    update pgqueue.blocked_jobs as b
       set run_at = b.run_at - passed, created_at = b.created_at - passed,
           options = case when b.options ? 'expires_at' then jsonb_set(b.options, '{expires_at}',
               to_jsonb((b.options ->> 'expires_at')::timestamptz - passed)) else b.options end;
    update pgqueue.unique_keys as k set expires_at = k.expires_at - passed where k.expires_at is not null;
    perform pgqueue.wake_leader(clock_timestamp());
    select count(*) into due from pgqueue.scheduled_jobs as s where s.run_at <= clock_timestamp();
    return due;
end $$;
comment on function pgqueue.travel(double precision) is
'For tests: moves the times of all jobs that wait, and of idempotency keys, back by `seconds`. Returns how many scheduled jobs are due now.';
