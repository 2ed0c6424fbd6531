-- Deletes up to 1,000 jobs that a queue keeps no longer, or looks for such jobs for 100 ms or 1,000 blocks, whichever is more,
-- from the oldest days on. Called by the leader, again and again until there is no more to do.
-- Locks: an advisory one, the rows that go (skip locked). Index: none on finished_jobs; dead_letters_by_time.
--
-- A partition is gone through in passes, block by block, by tid, and trims says how far; at the end of a pass the rows that it has
-- left say when the next one is due, a twentieth of its retention late: so a row is read some twenty times in its life, and
-- not before twenty times what the last pass took. Where every queue keeps as much no pass is made: days are dropped whole.
-- Nothing goes before roll_up has read it, or in its first minute, in which waiters look for it.
create function pgqueue.trim_history(out jobs integer, out more boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set timezone = 'UTC' set plan_cache_mode = force_custom_plan
set max_parallel_workers_per_gather = 0 set enable_seqscan = off set enable_mergejoin = off set enable_tidscan = on
as $$
declare
    began_at constant timestamptz := clock_timestamp();
    kept constant text := pgqueue.kept_settings();
    today constant date := began_at::date;
    target pgqueue.trims;
    is_over boolean;
    step_at timestamptz;
begin
    jobs := 0;
    more := false;
    perform set_config('synchronous_commit', 'off', true);
    if not pg_try_advisory_xact_lock(hashtextextended('pgqueue.trim', 0)) then
        return;
    end if;
    if exists (select from pgqueue.retention as r where r.settings <> kept) then
        update pgqueue.trims as t set due_at = '-infinity', next_block = 0, rules = null, seconds = 0;
        update pgqueue.retention as r set settings = kept;
    end if;
    delete from pgqueue.trims as t where to_regclass('pgqueue.' || quote_ident(t.relation)) is null;
    insert into pgqueue.trims (relation, day)
    select d.relation, d.day from pgqueue.history_partitions() as d where d.parent = 'finished_jobs' and d.day <= today
    union all
    select o.relation, null from unnest('{finished_jobs_overflow,dead_letters,audit}'::text[]) as o (relation)
    on conflict on constraint trims_one_row_a_table do nothing;
    more := true;
    while jobs = 0 and clock_timestamp() < began_at + interval '100 milliseconds' loop  -- tables in which there is little to look at
        step_at := clock_timestamp();
        select * into target from pgqueue.trims as t where t.due_at <= clock_timestamp() order by t.day nulls first, t.relation limit 1;
        if not found then
            update pgqueue.retention as r
               set due_at = greatest(
                       began_at + interval '1 minute',
                       least((select min(t.due_at) from pgqueue.trims as t), (today + 1)::timestamptz,
                             (select min(d.day) + 1 + pgqueue.longest_kept() from pgqueue.history_partitions() as d)));
            more := false;
            return;
        end if;
        if target.relation = 'dead_letters' then
            select d.jobs, d.is_over, d.next_due_at into jobs, is_over, target.next_due_at from pgqueue.trim_dead() as d;
        elsif target.relation = 'audit' then
            delete from pgqueue.audit as a
             where a.ctid = any (array(select o.ctid
                                         from (select e.ctid, e.acted_at from pgqueue.audit as e order by e.id limit 1000) as o
                                        where o.acted_at < began_at - interval '400 days'));
            get diagnostics jobs = row_count;
            is_over := jobs < 1000;
            target.next_due_at := began_at + interval '1 day';
        else
            if target.rules is null then
                target.rules := pgqueue.keep_rules(target.day is null);
                -- what is yet to come to it
                select case when target.day < (began_at - interval '1 hour')::date then 'infinity' when bool_or(r.counted) then began_at
                            else began_at + coalesce(1.05 * min(r.keep), '100 years') end
                  into target.next_due_at
                  from jsonb_to_recordset(target.rules) as r (keep interval, counted boolean);
            end if;
            if jsonb_array_length(target.rules) > 0 then
                select s.jobs, s.next_block, s.is_over, least(target.next_due_at, s.next_due_at)
                  into jobs, target.next_block, is_over, target.next_due_at
                  from pgqueue.trim_blocks(target.relation, target.next_block, target.rules) as s;
            else
                is_over := true;
                target.next_due_at := 'infinity';
            end if;
        end if;
        target.seconds := target.seconds + greatest(0, extract(epoch from clock_timestamp() - step_at));
        if is_over then
            update pgqueue.trims as t
               set due_at = greatest(target.next_due_at, clock_timestamp() + interval '1 minute',
                                     clock_timestamp() + make_interval(secs => 20 * target.seconds)),
                   next_block = 0, rules = null, seconds = 0
             where t.relation = target.relation;
        else
            update pgqueue.trims as t
               set next_block = target.next_block, rules = target.rules, next_due_at = target.next_due_at,
                   seconds = target.seconds
             where t.relation = target.relation;
        end if;
    end loop;
end $$;
comment on function pgqueue.trim_history() is
'A step of retention: deletes at most 1,000 jobs that their queue keeps no longer, with what is on record of them. Returns how many jobs, and whether there is more to do.';

-- One step over a partition of finished_jobs, from a block on. Called by trim_history. Locks: as trim_history. Index: none, it goes by tid.
create function pgqueue.trim_blocks(
    relation text, from_block bigint, rules jsonb, out jobs integer, out next_block bigint, out is_over boolean, out next_due_at timestamptz
) language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan
set max_parallel_workers_per_gather = 0 set enable_seqscan = off set enable_mergejoin = off set enable_tidscan = on
as $$
declare
    most constant integer := 1000;
    blocks constant integer := 1000;
    size constant bigint := pg_relation_size(to_regclass('pgqueue.' || quote_ident(relation)))
                            / current_setting('block_size')::integer;
    ids bigint[];
    states text[];
    born_at timestamptz;
    last_block bigint;
begin
    next_block := least(from_block + blocks, size);
    is_over := next_block = size;
    execute format($step$
        with rules as materialized (
            select * from jsonb_to_recordset($1) as r (queue text, state text, before timestamptz)
        ), expired as materialized (
            select f.ctid from pgqueue.%1$I as f
              left join rules as r on r.queue = f.queue and r.state = f.state
              left join rules as d on d.queue is null and d.state = f.state
             where f.ctid >= $2 and f.ctid < $3 and f.finished_at < case when r.queue is null then d.before else r.before end
             limit $4 for update of f skip locked
        ), gone as (
            delete from pgqueue.%1$I as f where f.ctid = any (array(select e.ctid from expired as e))
            returning f.ctid, f.id, f.state, f.created_at
        )
        select count(*), coalesce(array_agg(g.id), '{}'), array_agg(g.state), min(g.created_at),
               max((g.ctid::text::point)[0]::bigint)
          from gone as g $step$, relation)
       into jobs, ids, states, born_at, last_block
      using rules, format('(%s,0)', from_block)::tid, format('(%s,0)', next_block)::tid, most;
    if jobs = most then
        next_block := last_block;
        is_over := false;
    end if;
    if jobs > 0 then
        perform pgqueue.forget_jobs(ids, states, born_at);
    end if;
    execute format($step$
        with rules as materialized (
            select * from jsonb_to_recordset($1) as r (queue text, state text, keep interval, counted boolean)
        )
        select min(case when k.counted then clock_timestamp() + 0.05 * (clock_timestamp() - f.finished_at)
                        else f.finished_at + 1.05 * k.keep end)
          from pgqueue.%1$I as f
          left join rules as r on r.queue = f.queue and r.state = f.state
          left join rules as d on d.queue is null and d.state = f.state
         cross join lateral (select case when r.queue is null then d.counted else r.counted end as counted,
                                    case when r.queue is null then d.keep else r.keep end as keep) as k
         where f.ctid >= $2 and f.ctid < $3 $step$, relation)
       into next_due_at
      using rules, format('(%s,0)', from_block)::tid, format('(%s,0)', next_block)::tid;
    if is_over and relation = 'finished_jobs_overflow' then
        delete from pgqueue.job_failures_overflow as f
         where f.ctid = any (array(select o.ctid from pgqueue.job_failures_overflow as o
                                    where o.failed_at < clock_timestamp() - pgqueue.longest_kept() limit most));
        delete from pgqueue.job_reports_overflow as f
         where f.ctid = any (array(select o.ctid from pgqueue.job_reports_overflow as o
                                    where o.reported_at < clock_timestamp() - pgqueue.longest_kept() limit most));
    end if;
end $$;
comment on function pgqueue.trim_blocks(text, bigint, jsonb) is
'Private. One step of trim_history over a partition. next_due_at: when the first of the rows will go that it has left.';

-- Deletes dead letters that their queue keeps no longer, the oldest first. Called by trim_history. Locks: as trim_history.
-- Index: dead_letters_by_time.
create function pgqueue.trim_dead(out jobs integer, out is_over boolean, out next_due_at timestamptz)
language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan set enable_seqscan = off
as $$
declare
    most constant integer := 1000;
    horizon constant timestamptz := pgqueue.trim_horizon();
    rule record;
    ids bigint[];
    born_at timestamptz;
begin
    jobs := 0;
    next_due_at := 'infinity';
    for rule in
        select q.name, q.max_dead, least(q.keep_dead, '1000 years') as keep from pgqueue.queues as q
         where q.keep_dead is not null or q.max_dead is not null
    loop
        next_due_at := least(next_due_at, clock_timestamp() + case when rule.max_dead is null then 0.05 * rule.keep else '0' end);
        continue when jobs >= most;
        with expired as materialized (
            select d.ctid from pgqueue.dead_letters as d
             where d.queue = rule.name
               and d.died_at < least(horizon, greatest(
                       clock_timestamp() - rule.keep,
                       case when rule.max_dead = 0 then 'infinity' else
                           (select n.died_at from pgqueue.dead_letters as n where n.queue = rule.name
                             order by n.died_at desc offset rule.max_dead - 1
                             limit case when rule.max_dead is null then 0 else 1 end) end))
             order by d.died_at limit most - jobs for update skip locked
        ), gone as (
            delete from pgqueue.dead_letters as d where d.ctid = any (array(select e.ctid from expired as e))
            returning d.id, d.created_at
        )
        select coalesce(array_agg(g.id), '{}'), min(g.created_at) into ids, born_at from gone as g;
        if cardinality(ids) > 0 then
            jobs := jobs + cardinality(ids);
            perform pgqueue.forget_jobs(ids, array_fill('dead'::text, array[cardinality(ids)]), born_at);
            update pgqueue.depth_count as c set is_moving = true where not c.is_moving;  -- to be counted again
        end if;
    end loop;
    is_over := jobs < most;
end $$;
comment on function pgqueue.trim_dead() is 'Private. Deletes at most 1,000 dead letters that their queue keeps no longer.';

-- Forgets what else is on record of jobs that have gone, and notes how those of schedules had ended. Called by trim_history.
-- Locks: the rows that go. Index: job_failures_by_job, job_reports_by_job, job_steps_taken_once, schedule_runs_unsettled.
create function pgqueue.forget_jobs(ids bigint[], states text[], born_at timestamptz)
returns void language plpgsql
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_custom_plan set enable_seqscan = off
as $$
declare
    -- an attempt of theirs has not ended before, but for a clock that was set back; or in the overflow
    born_on constant date := (born_at at time zone 'UTC')::date - 1;
begin
    update pgqueue.schedule_runs as r set state = g.state
      from unnest(ids, states) as g (id, state)
     where r.job_id = g.id and r.state is null and r.job_id is not null;
    delete from pgqueue.job_failures as f where f.job_id = any (ids) and (f.day >= born_on or f.day = '-infinity');
    delete from pgqueue.job_reports as f where f.job_id = any (ids) and (f.day >= born_on or f.day = '-infinity');
    delete from pgqueue.job_steps as s where s.job_id = any (ids);
end $$;
comment on function pgqueue.forget_jobs(bigint[], text[], timestamptz) is 'Private. Forgets failures, reports and steps of jobs that have gone.';
