-- Says what is wrong with options.unique, and refuses it with SQLSTATE PQ001 and a hint.
-- Called by reject_job for a job that has it. Locks: none.
create function pgqueue.reject_unique(how jsonb, unique_key text, has_time boolean, place text) returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    policy constant text := coalesce(how ->> 'on_conflict', 'keep');
    seconds constant text := 'Seconds, more than 0 and at most ten years.';
    stranger text;
    problem text;
    remedy text;
begin
    if jsonb_typeof(how) <> 'object' then
        raise exception using errcode = 'PQ001',
            message = place || 'options.unique: expected a JSON object, got a JSON ' || jsonb_typeof(how),
            hint = 'Keys: scope, period, on_conflict, max_delay.';
    end if;
    stranger := (select k.key from jsonb_object_keys(how) as k (key)
                  where k.key not in ('scope', 'period', 'on_conflict', 'max_delay') order by k.key limit 1);
    case
        when stranger is not null then
            problem := format('options.unique: there is no %s', pgqueue.as_given(stranger));
            remedy := 'Keys: scope, period, on_conflict, max_delay.';
        when unique_key is null then
            problem := 'options.unique: there is no unique_key';
            remedy := 'It says what the unique_key is to mean: give both.';
        when how ->> 'scope' not in ('unfinished', 'waiting') then
            problem := format('options.unique.scope: %s is none', pgqueue.as_given(how ->> 'scope'));
            remedy := 'unfinished or waiting.';
        when policy not in ('keep', 'replace', 'debounce', 'raise_priority', 'follow_up') then
            problem := format('options.unique.on_conflict: %s is none', pgqueue.as_given(policy));
            remedy := 'keep, replace, debounce, raise_priority or follow_up.';
        when jsonb_typeof(how -> 'period') <> 'number' or not (how ->> 'period')::numeric between 0.001 and 315360000 then
            problem := format('options.unique.period: %s is out of range', regexp_replace(left(coalesce(how ->> 'period', 'null'), 40), '[[:cntrl:]]', '?', 'g'));
            remedy := seconds;
        when jsonb_typeof(how -> 'max_delay') <> 'number' or not (how ->> 'max_delay')::numeric between 0.001 and 315360000 then
            problem := format('options.unique.max_delay: %s is out of range', regexp_replace(left(coalesce(how ->> 'max_delay', 'null'), 40), '[[:cntrl:]]', '?', 'g'));
            remedy := seconds;
        when how ? 'scope' and how ? 'period' then
            problem := 'options.unique.scope and period: both given';
            remedy := 'Give one of them: a period counts whatever state the job is in.';
        when policy = 'debounce' and not (how ? 'max_delay' and has_time) then
            problem := 'options.unique.on_conflict: debounce without ' || case when has_time then 'a max_delay' else 'a delay' end;
            remedy := 'delay is what a job is put off by, max_delay how far in all, counted from its enqueue.';
        when policy <> 'debounce' and how ? 'max_delay' then
            problem := 'options.unique.max_delay: it bounds a debounce, and this is ' || policy;
            remedy := 'Leave it out, or say on_conflict debounce.';
        when policy = 'follow_up' and (how ? 'period' or how ->> 'scope' = 'waiting') then
            problem := 'options.unique.on_conflict: follow_up goes with the scope unfinished alone';
            remedy := 'In the scope waiting a running job does not count: a new one is made beside it.';
        else
            return;
    end case;
    raise exception using errcode = 'PQ001', message = place || problem, hint = remedy;
end $$;
comment on function pgqueue.reject_unique(jsonb, text, boolean, text) is
'Private. Raises PQ001 naming the first bad part of options.unique, with a hint; returns when there is none.';
