-- Takes up to max_jobs ready jobs for a worker, queue after queue in the order given, each by lane, then position.
-- Called by workers. cursors: 20 per queue (one a lane), the position to start at; 0: the lane's floor.
-- fence: 64 random bits, drawn by the worker for this claim alone; they become the lease of its jobs. The worker draws
-- them so that it can give back a claim whose answer it never heard (forget_claim).
-- Locks: key share on the worker's row (rescue waits for it), the claimed rows (skip locked). Index: ready_jobs_lane.
--
-- Counts the attempt, so that a job that kills its worker runs out of attempts too. Never returns more than asked.
-- Commits asynchronously: a claim that a crash of the server forgets only means that the job is still ready.
create function pgqueue.claim(
    worker_id bigint, queues text[], limits integer[], max_jobs integer, cursors bigint[], fence bigint
) returns table (id bigint, lease bigint, queue text, lane smallint, "position" bigint, task text, args text,
               attempt smallint, max_attempts smallint, crashes smallint, options text, waited double precision)
language plpgsql security definer rows 100
set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_tidscan = on
as $$
#variable_conflict use_column
declare
    room integer := max_jobs;
    wanted integer;
    taken integer;
    floors bigint[];
begin
    if claim.queues is null or claim.max_jobs is null or claim.fence is null
       or cardinality(claim.limits) is distinct from cardinality(claim.queues) then
        raise exception using errcode = 'PQ001', message = format('claim: max_jobs %s, fence %s, queues and limits of lengths %s and %s',
                coalesce(max_jobs::text, 'null'), case when fence is null then 'null' else 'given' end,
                coalesce(cardinality(queues)::text, 'null'), coalesce(cardinality(limits)::text, 'null')),
            hint = 'None of them may be null, and each queue has a limit.';
    end if;
    perform set_config('synchronous_commit', 'off', true);
    perform from pgqueue.workers as w where w.id = claim.worker_id for key share;
    if not found then
        raise exception using errcode = 'PQ002', message = format('worker %s is not registered', coalesce(claim.worker_id::text, 'null')),
            hint = 'It was declared dead after its heartbeat stood still; its jobs were given to others. Register again.';
    end if;
    for i in 1 .. cardinality(claim.queues) loop
        wanted := least(room, claim.limits[i]);
        continue when wanted <= 0;
        continue when exists (select from pgqueue.queues as q where q.name = claim.queues[i] and q.paused_at is not null);
        select f.floors into floors from pgqueue.lane_floors as f where f.queue = claim.queues[i];
        return query
        with picked as (
            delete from pgqueue.ready_jobs as j
             where j.ctid = any (array(
                 select line.ctid
                   from unnest(claim.cursors[20 * i - 19 : 20 * i], coalesce(floors, array_fill(0, array[20])))
                        with ordinality as c (cursor, floor, number)
                        cross join lateral (
                            select r.ctid from pgqueue.ready_jobs as r
                             where r.queue = claim.queues[i] and r.lane = c.number - 1
                               and r.position >= greatest(c.cursor, c.floor)
                             order by r.position
                             limit wanted
                               for update skip locked) as line
                  limit wanted))
            returning j.id, j.run_at, j.created_at, j.lane, j.position, j.attempt, j.max_attempts, j.crashes, j.queue,
                      j.task, j.args, j.unique_key, j.options
        ), running as (
            insert into pgqueue.running_jobs (id, worker_id, lease, run_at, created_at, claimed_at, lane, attempt,
                                              max_attempts, crashes, queue, task, args, unique_key, options)
            select p.id, claim.worker_id, claim.fence, p.run_at, p.created_at, clock_timestamp(), p.lane, p.attempt + 1,
                   p.max_attempts, p.crashes, p.queue, p.task, p.args, p.unique_key, p.options
              from picked as p
        )
        select p.id, claim.fence, p.queue, p.lane, p.position, p.task, p.args::text, (p.attempt + 1)::smallint,
               p.max_attempts, p.crashes, p.options::text, greatest(0, date_part('epoch', clock_timestamp() - p.run_at))
          from picked as p order by p.lane, p.position;
        get diagnostics taken = row_count;
        room := room - taken;
        if taken = wanted and taken > 0 then
            -- There may be more: one more worker looks, the next by id. Not the latest to fall asleep, as elsewhere:
            -- that is this one, which stays a sleeper until it has been busy for a while, or the one that woke it.
            perform pg_notify('pgqueue_' || s.worker_id, '')
               from (select n.worker_id from pgqueue.sleepers as n
                      where n.queue = claim.queues[i] and n.worker_id <> claim.worker_id
                        and n.period > now() - interval '35 seconds'
                        and n.slept_at > clock_timestamp() - interval '25 seconds'
                      order by n.worker_id < claim.worker_id, n.worker_id
                      limit 1) as s
              where current_setting('pgqueue.notify', true) is distinct from 'off';
        end if;
    end loop;
end $$;
comment on function pgqueue.claim(bigint, text[], integer[], integer, bigint[], bigint) is
'Claims up to max_jobs ready jobs (at most limits[i] of queues[i]) for a worker, under the lease `fence`. `waited`: seconds since each was due. PQ002 when the worker is not registered.';

-- Gives back what a claim took whose answer never reached the worker: untouched, the attempt too.
-- Called by workers after a claim ended in a lost connection. Waits for that claim if it is still under way.
-- Locks: the worker's row for update, the claim's rows of running_jobs. Scans running_jobs: an outage is rare.
create function pgqueue.forget_claim(worker_id bigint, fence bigint)
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
declare
    ids bigint[];
begin
    perform from pgqueue.workers as w where w.id = forget_claim.worker_id for update;
    select array_agg(r.id) into ids from pgqueue.running_jobs as r
     where r.worker_id = forget_claim.worker_id and r.lease = forget_claim.fence;
    return pgqueue.release(ids, array_fill(forget_claim.fence, array[coalesce(cardinality(ids), 0)]));
end $$;
comment on function pgqueue.forget_claim(bigint, bigint) is
'Gives back the jobs of a claim whose answer was lost. Returns their ids.';

-- Gives back what the worker is said to hold and does not, untouched: the database came back in an earlier state, after a
-- failover or a restore, and has forgotten how these jobs ended. Called by workers once they hear of that, and never beside a
-- claim of theirs. Locks: the worker's row for update, those jobs' rows. Scans running_jobs: a recovery is rare.
create function pgqueue.forget_unheld(worker_id bigint, ids bigint[], leases bigint[])
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off
as $$
#variable_conflict use_column
declare
    unheld bigint[];
    unheld_leases bigint[];
begin
    if cardinality(ids) <> cardinality(leases) then
        perform pgqueue.reject_lengths('ids, leases', array[cardinality(ids), cardinality(leases)]);
    end if;
    perform from pgqueue.workers as w where w.id = forget_unheld.worker_id for update;
    select array_agg(r.id), array_agg(r.lease) into unheld, unheld_leases from pgqueue.running_jobs as r
     where r.worker_id = forget_unheld.worker_id
       and (r.id, r.lease) not in (select h.id, h.lease from unnest(forget_unheld.ids, forget_unheld.leases) as h (id, lease));
    return pgqueue.release(coalesce(unheld, '{}'), coalesce(unheld_leases, '{}'));
end $$;
comment on function pgqueue.forget_unheld(bigint, bigint[], bigint[]) is
'Gives back the jobs that a worker is said to hold, but for these. Returns their ids.';
