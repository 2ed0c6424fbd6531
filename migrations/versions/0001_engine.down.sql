-- Takes pgqueue away, with every job and the history. The roles stay: they belong to the whole server.
-- The schema pgqueue itself goes right after this (migrations/env.py), when its version table has been read.
drop schema pgqueue_bi cascade;
