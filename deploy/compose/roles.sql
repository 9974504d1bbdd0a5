-- Roles and schemas of Gatehouse. Run by psql as a superuser, as often as you like; what is there is brought to this.
--
-- gatehouse_migrate owns every schema and is used by `gatehouse migrate` alone. Each service has a role of its own that
-- reads and writes rows in its own schema. It changes no table, sees no other schema, keeps nothing outside of tables, and
-- takes no more connections than its share. What these five roles were given or took besides, here and in the cluster, is
-- taken back; of other roles nothing is touched.
--
-- One thing no grant can forbid: a role changes its own password and its own settings. The next run sets both back.
\set ON_ERROR_STOP on
\set migrate `cat "${GATEHOUSE_SECRETS:-/secrets}/migrate.password"`
\set auth `cat "${GATEHOUSE_SECRETS:-/secrets}/auth.password"`
\set token_broker `cat "${GATEHOUSE_SECRETS:-/secrets}/token-broker.password"`
\set job `cat "${GATEHOUSE_SECRETS:-/secrets}/job.password"`
\set audit `cat "${GATEHOUSE_SECRETS:-/secrets}/audit.password"`
-- Three replicas with databases.*.max_connections = 10, and what each needs besides. All together stay below the server's
-- max_connections, so that a stolen password does not shut the others out.
\set connections 40

SELECT 'CREATE DATABASE gatehouse'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'gatehouse') \gexec
\connect gatehouse

-- All of it or nothing: services that run meanwhile lose no right in between.
BEGIN;

CREATE TEMPORARY TABLE ours ON COMMIT DROP AS
SELECT name, name <> 'gatehouse_migrate' AS is_service
FROM unnest(ARRAY['gatehouse_migrate', 'gatehouse_auth', 'gatehouse_token_broker', 'gatehouse_job', 'gatehouse_audit']) name;

SELECT format('CREATE ROLE %I', name) FROM ours
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

SELECT format('ALTER ROLE %I LOGIN INHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS '
              'CONNECTION LIMIT %s VALID UNTIL ''infinity''', name, CASE WHEN is_service THEN :connections ELSE 10 END)
FROM ours \gexec

ALTER ROLE gatehouse_migrate PASSWORD :'migrate';
ALTER ROLE gatehouse_auth PASSWORD :'auth';
ALTER ROLE gatehouse_token_broker PASSWORD :'token_broker';
ALTER ROLE gatehouse_job PASSWORD :'job';
ALTER ROLE gatehouse_audit PASSWORD :'audit';

-- Their settings, everywhere and in single databases.
SELECT format('ALTER ROLE %I RESET ALL', name) FROM ours \gexec
SELECT format('ALTER ROLE %I IN DATABASE %I RESET ALL', rolname, datname)
FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole JOIN pg_database d ON d.oid = s.setdatabase
WHERE rolname IN (SELECT name FROM ours) \gexec

-- Nobody of them is a member of another role, and nobody a member of them.
SELECT format('REVOKE %I FROM %I GRANTED BY %I CASCADE', r.rolname, m.rolname, g.rolname)
FROM pg_auth_members a
JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member JOIN pg_roles g ON g.oid = a.grantor
WHERE (r.rolname IN (SELECT name FROM ours) OR m.rolname IN (SELECT name FROM ours)) \gexec

-- What a service made goes to the owner of the tables; what a service was granted ends here and is granted anew below.
SELECT format(statement, name) FROM ours
CROSS JOIN (VALUES (1, 'REASSIGN OWNED BY %I TO gatehouse_migrate'), (2, 'DROP OWNED BY %I')) AS s (step, statement)
WHERE is_service ORDER BY step \gexec
SELECT format('ALTER DATABASE gatehouse OWNER TO %I', current_user) \gexec

REVOKE ALL ON DATABASE gatehouse, postgres, template1 FROM PUBLIC, gatehouse_migrate;
REVOKE ALL ON SCHEMA public FROM PUBLIC, gatehouse_migrate;
SELECT format('GRANT CONNECT ON DATABASE gatehouse TO %I', name) FROM ours \gexec

-- Large objects lie in no schema, and whoever has a connection may make some.
SELECT format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', oid::regprocedure)
FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND (proname ~ '^lo_' OR proname IN ('loread', 'lowrite')) \gexec

-- A schema has the name of the role that uses it.
SELECT format(statement, name) FROM ours
CROSS JOIN (VALUES
    (1, 'CREATE SCHEMA IF NOT EXISTS %1$I AUTHORIZATION gatehouse_migrate'),
    (2, 'ALTER SCHEMA %1$I OWNER TO gatehouse_migrate'),
    (3, 'REVOKE ALL ON SCHEMA %1$I FROM PUBLIC'),
    (4, 'REVOKE ALL ON ALL TABLES IN SCHEMA %1$I FROM PUBLIC'),
    (5, 'REVOKE ALL ON ALL SEQUENCES IN SCHEMA %1$I FROM PUBLIC'),
    (6, 'GRANT USAGE ON SCHEMA %1$I TO %1$I'),
    (7, 'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %1$I TO %1$I'),
    (8, 'ALTER DEFAULT PRIVILEGES FOR ROLE gatehouse_migrate IN SCHEMA %1$I '
        'GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO %1$I')
) AS s (step, statement)
WHERE is_service ORDER BY name, step \gexec

COMMIT;
