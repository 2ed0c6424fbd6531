-- Where the history notes how far it has come. Not part of sql/: a schema installed by hand has none.
create table pgqueue.alembic_version (
    version_num varchar(32) not null,
    constraint alembic_version_pkc primary key (version_num)
);
grant select on pgqueue.alembic_version to public;  -- for `pgqueue db status` of whoever may use the schema
comment on table pgqueue.alembic_version is 'The revision of pgqueue''s own migrations; nothing of the application''s.';
comment on column pgqueue.alembic_version.version_num is 'The newest revision that was applied.';
