-- Runs dead letters again, with attempts from 0. Called by operators.
-- A letter whose unique_key is held by another unfinished job stays where it is. Its keys are not made anew from edited args.
-- Locks: the letters' rows, their keys. Index: dead_letters_one_row_a_job.
create function pgqueue.replay(ids bigint[], new_args jsonb default null, changed_args jsonb default null)
returns bigint[] language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    letter record;
    replayed bigint[] := '{}';
begin
    if jsonb_typeof(new_args) <> 'object' or jsonb_typeof(changed_args) <> 'object' then
        raise exception using errcode = 'PQ003',
            message = format('replay: expected a JSON object of args, got a JSON %s',
                             jsonb_typeof(case when jsonb_typeof(new_args) <> 'object' then new_args else changed_args end)),
            hint = 'Name each argument: {"user_id": 7}.';
    end if;
    if changed_args is not null and exists (select from pgqueue.dead_letters as d
                                             where d.id = any (replay.ids) and d.args ? 'pgqueue.encrypted') then
        raise exception using errcode = 'PQ003', message = 'replay: some of these jobs have encrypted args, which cannot be changed one by one',
            hint = 'Give all args anew, encrypted: pgqueue dead replay ID --args JSON, where the keys are.';
    end if;
    for letter in
        select d.id, d.task, d.queue,
               case when d.options #> '{unique, period}' is null then d.unique_key end as unique_key
          from pgqueue.dead_letters as d
         where d.id = any (replay.ids) order by d.task, d.unique_key, d.id for update skip locked
    loop
        continue when letter.unique_key is not null
            and (select k.outcome from pgqueue.take_unique_key(letter.task, letter.unique_key, letter.id) as k) <> 'created';
        with gone as (
            delete from pgqueue.dead_letters as d where d.id = letter.id
            returning d.id, d.created_at, d.lane, d.max_attempts, d.queue, d.task, d.args, d.unique_key, d.options
        )
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args,
                                        unique_key, options)
        select g.id, now(), g.created_at, g.lane, 0, g.max_attempts, 0, g.queue, g.task,
               coalesce(new_args, g.args) || coalesce(changed_args, '{}'), g.unique_key, g.options
          from gone as g;
        replayed := replayed || letter.id;
        perform pgqueue.notify_sleepers(letter.queue, 1);
    end loop;
    perform pgqueue.audited('replay', ids => replayed, details => jsonb_build_object('edited_args',
        (select jsonb_agg(a.name order by a.name) from jsonb_object_keys(coalesce(new_args, '{}') || coalesce(changed_args, '{}')) as a (name))));
    return replayed;
end $$;
comment on function pgqueue.replay(bigint[], jsonb, jsonb) is
'Makes dead letters ready again, attempts from 0. Returns the ids that were replayed; the others are no dead letters, or their unique_key is held. new_args: instead of their args; changed_args: these of them, the others stay.';
