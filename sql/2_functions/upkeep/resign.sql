-- Gives leadership up, and asks the others to take it over at once. Called by a supervisor on its way out.
-- Locks: the row of leadership.
create function pgqueue.resign(supervisor_id bigint)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    update pgqueue.leadership as l set supervisor_id = 0 where l.supervisor_id = resign.supervisor_id;
    if found then
        perform pgqueue.publish_look(null);
        perform pg_notify('pgqueue_upkeep', '');
    end if;
    return found;
end $$;
comment on function pgqueue.resign(bigint) is 'Gives leadership of upkeep up, if this supervisor has it. Returns whether it had.';
