-- Waiting for the end of jobs without losing the notification. The waiter, which listens on its channel, (1) registers and
-- commits, (2) reads in a new statement which endings are under way: only such a one may have looked for waiters before (1) and
-- have yet to commit, (3) looks at the jobs, with pauses that grow to 250 ms, until those have ended, and once more after the
-- test that found them gone. From then on it relies on the NOTIFY; an ending above READ COMMITTED, which sees no waiter
-- that came after its snapshot, is found by a look every 2 s.

-- (1) Called by producers, again every 10 s while they wait. Locks: RowExclusive on waiters. Index: waiters_one_row_a_period.
create function pgqueue.wait_for(ids bigint[], channel text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
begin
    -- An ending must never stumble over a channel.
    if coalesce(channel !~ '^pgqueue_wait_[0-9a-f]{16}$', true) then
        raise exception using errcode = 'PQ001', message = format('channel: %s is not a waiter''s', pgqueue.as_given(channel)),
            hint = 'pgqueue_wait_ and 16 hexadecimal digits, drawn at random.';
    end if;
    if cardinality(ids) > 1000 then
        raise exception using errcode = 'PQ001', message = format('ids: %s of them', cardinality(ids)),
            hint = 'At most 1,000 in a call.';
    end if;
    perform set_config('synchronous_commit', 'off', true);
    insert into pgqueue.waiters (period, job_id, channel)
    select date_bin('10 seconds', clock_timestamp(), '2000-01-01'), i.id, wait_for.channel
      from unnest(wait_for.ids) as i (id) where i.id is not null
    on conflict do nothing;
    -- So the waiter hears that its LISTEN is heard: behind a transaction pooler it is not.
    perform pg_notify(wait_for.channel, '') where current_setting('pgqueue.notify', true) is distinct from 'off';
end $$;
comment on function pgqueue.wait_for(bigint[], text) is
'Registers a waiter for 35 s: the end of a job in `ids` (0: of any job or attempt) notifies `channel` (pgqueue_wait_ and 16 hexadecimal digits) with its id. An empty notification comes at once.';

-- (2) Called by producers after (1). `among`: only these; null: all. Locks: none.
create function pgqueue.endings_under_way(among text[] default null)
returns text[] language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return pgqueue.writers('finished_jobs', endings_under_way.among) || pgqueue.writers('dead_letters', endings_under_way.among)
        || pgqueue.writers('job_failures', endings_under_way.among);
end $$;
comment on function pgqueue.endings_under_way(text[]) is
'The virtual transactions that are about to end jobs or attempts.';
