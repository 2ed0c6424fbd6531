-- What functions say of a call that is none: SQLSTATE PQ001, one line that names the argument and what was given, and a hint.
-- Called by the functions of producer/, worker/, operator/ and upkeep/, in most of them after a cheap test has failed.

-- A value as a message shows it: quoted, in one line, with nothing in it that moves a terminal's cursor.
-- Called by whatever refuses text. Locks: none.
create function pgqueue.as_given(given text, most integer default 40)
returns text language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    return quote_nullable(regexp_replace(left(given, most), '[[:cntrl:]]', '?', 'g'));
end $$;
comment on function pgqueue.as_given(text, integer) is 'Private. The first characters of a value, quoted, for a message of one line.';

-- Called for a number that is missing or out of bounds. Locks: none.
create function pgqueue.reject_range(argument text, given text, bounds text)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'PQ001', message = format('%s: %s is out of range', argument, coalesce(given, 'null')), hint = bounds;
end $$;
comment on function pgqueue.reject_range(text, text, text) is 'Private. Raises PQ001 for a number that is missing or out of bounds.';

-- Seconds that an interval can be made of. Called by upkeep and statistics, for which it is nothing. Locks: none.
create function pgqueue.checked_seconds(argument text, given double precision)
returns double precision language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if not coalesce(given between 0 and 315360000, false) then
        perform pgqueue.reject_range(argument, given::text, 'Seconds, from 0 to ten years.');
    end if;
    return given;
end $$;
comment on function pgqueue.checked_seconds(text, double precision) is 'Private. The seconds given; raises PQ001 when they are none.';

-- Called by the functions that search. `most`: the argument that bounds them, and what was given. Locks: none.
create function pgqueue.reject_search(argument text, most integer, of_args jsonb)
returns void language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if most < 0 then
        perform pgqueue.reject_range(argument, most::text, 'From 0; null: as many as there are.');
    end if;
    if jsonb_typeof(of_args) <> 'object' then
        raise exception using errcode = 'PQ001', message = 'of_args: expected a JSON object, got a JSON ' || jsonb_typeof(of_args),
            hint = 'A part of the args: {"user_id": 7}.';
    end if;
end $$;
comment on function pgqueue.reject_search(text, integer, jsonb) is
'Private. Raises PQ001 for filters that are none; returns when they can be searched by.';

-- Called by the endings for arrays that do not belong together. Locks: none.
create function pgqueue.reject_lengths(arguments text, lengths integer[])
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'PQ001',
        message = format('%s: arrays of different lengths: %s', arguments, array_to_string(lengths, ', ', 'null')),
        hint = 'One element each for a job.';
end $$;
comment on function pgqueue.reject_lengths(text, integer[]) is 'Private. Raises PQ001 for arrays of different lengths.';

-- Whether JSON is an array of what has an id and a lease; null: null. Called by fail, complete_with_results, note_progress,
-- note_reports, into which it is inlined. Strict: a key that is missing is none of them, and matches no job.
-- Locks: none.
create function pgqueue.are_claims(items jsonb)
returns boolean language sql immutable parallel safe
return jsonb_typeof(items) = 'array' and not jsonb_path_exists(items, 'strict $[*] ? (@.type() != "object"
    || @.id.type() != "number" || @.id.floor() != @.id || @.id < -9223372036854775808 || @.id > 9223372036854775807
    || @.lease.type() != "number" || @.lease.floor() != @.lease || @.lease < -9223372036854775808 || @.lease > 9223372036854775807
    || @.delay.type() != "null" && @.delay.type() != "number" || @.delay > 1e300 || @.delay < -1e300)');
comment on function pgqueue.are_claims(jsonb) is 'Private. Whether this is an array of {id, lease, delay}, each a number.';

-- Called when it is not. Locks: none.
create function pgqueue.reject_claims(argument text, items jsonb)
returns void language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    remedy constant text := 'An array of objects: {"id": 4711, "lease": -42}.';
    item record;
begin
    if jsonb_typeof(items) <> 'array' then
        raise exception using errcode = 'PQ001', message = format('%s: expected a JSON array, got a JSON %s', argument, jsonb_typeof(items)),
            hint = remedy;
    end if;
    for item in
        select i.claim, i.n - 1 as place from jsonb_array_elements(items) with ordinality as i (claim, n)
         where not pgqueue.are_claims(jsonb_build_array(i.claim)) order by i.n limit 1
    loop
        raise exception using errcode = 'PQ001', message = case
                when jsonb_typeof(item.claim) <> 'object'
                then format('%s: item %s: expected a JSON object, got a JSON %s', argument, item.place, jsonb_typeof(item.claim))
                else format('%s: item %s: id %s, lease %s, delay %s: expected whole numbers, and seconds', argument, item.place,
                            coalesce(pgqueue.as_given(item.claim ->> 'id'), 'null'),
                            coalesce(pgqueue.as_given(item.claim ->> 'lease'), 'null'),
                            coalesce(pgqueue.as_given(item.claim ->> 'delay'), 'null')) end,
            hint = remedy;
    end loop;
end $$;
comment on function pgqueue.reject_claims(text, jsonb) is 'Private. Raises PQ001 naming the first item that has no id and lease.';
