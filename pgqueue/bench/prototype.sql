-- The design's prototype of the hot path, as it was measured there: no leases, no retries, no grants.
-- `pgqueue bench ceiling` measures the real functions against it. It lives in schema q of a scratch database.
drop schema if exists q cascade;
create schema q;
create sequence q.position_seq;
create table q.jobs(id bigint not null default nextval('q.position_seq'), queue text collate "C" not null default 'default', priority smallint not null default 0, position bigint not null default nextval('q.position_seq'), attempt smallint not null default 0, max_attempts smallint not null default 5, task text not null, args jsonb not null, run_at timestamptz not null default now(), created_at timestamptz not null default now(), primary key(id));
create unique index jobs_lane on q.jobs(queue,priority,position);
create table q.running(id bigint primary key, worker_id bigint not null, attempt smallint not null, max_attempts smallint, queue text collate "C" not null, priority smallint not null, task text not null, args jsonb not null, run_at timestamptz, created_at timestamptz, claimed_at timestamptz);
create table q.finished(id bigint primary key, worker_id bigint, attempt smallint not null, state smallint, queue text collate "C" not null, priority smallint not null, task text not null, args jsonb not null, run_at timestamptz, created_at timestamptz, claimed_at timestamptz, finished_at timestamptz not null);
create function q.claim(_queue text, _worker bigint, _limit int, _cursor bigint[]) returns table(id bigint, task text, args jsonb, attempt smallint, max_attempts smallint, priority smallint, pos bigint)
language plpgsql set jit=off set enable_seqscan=off set enable_bitmapscan=off set enable_hashjoin=off set enable_mergejoin=off set plan_cache_mode=force_generic_plan as $$
#variable_conflict use_column
begin
return query
with picked as (
  delete from q.jobs j where j.ctid = any(array(
     select l.ctid from unnest(_cursor) with ordinality c(pos, prio)
       cross join lateral (select ctid from q.jobs where queue=_queue and priority=c.prio-1 and position>=c.pos order by position limit _limit for update skip locked) l
     limit _limit)) returning *
), ins as (insert into q.running select p.id,_worker,p.attempt+1,p.max_attempts,p.queue,p.priority,p.task,p.args,p.run_at,p.created_at,now() from picked p)
select p.id,p.task,p.args,(p.attempt+1)::smallint,p.max_attempts,p.priority,p.position from picked p;
end $$;
create function q.finish(_worker bigint, _ids bigint[]) returns int language plpgsql set jit=off set enable_seqscan=off set plan_cache_mode=force_generic_plan as $$
declare n int;
begin
with d as (delete from q.running where id=any(_ids) and worker_id=_worker returning *),
i as (insert into q.finished select id,worker_id,attempt,2,queue,priority,task,args,run_at,created_at,claimed_at,now() from d)
select count(*)::int into n from d;
return n;
end $$;
