-- When the leader of upkeep looks at times again: whoever schedules something for earlier notifies it.
-- A sequence, because it is changed in place: visible to all at once, before the leader's look for what is due, and
-- without a dead version each time, over which every enqueue would walk under a held snapshot.
-- Unlogged: after a crash of the server it says 1, which is long ago, until the leader's next look.

create unlogged sequence pgqueue.next_look;
comment on sequence pgqueue.next_look is 'When the leader looks again, in milliseconds since 1970; in the past: it is at it, or is gone.';
