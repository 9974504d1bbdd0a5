-- Roles and schemas of Gatehouse. Run by psql as a superuser, as often as you like; what is there is brought to this.
--
-- gatehouse_migrate owns every schema and is used by `gatehouse migrate` alone. Each service has a role of its own that
-- reads and writes rows in its own schema, and can do nothing else: change no table, see no other schema.
\set migrate `cat /secrets/migrate.password`
\set auth `cat /secrets/auth.password`
\set token_broker `cat /secrets/token-broker.password`
\set job `cat /secrets/job.password`
\set audit `cat /secrets/audit.password`

SELECT 'CREATE DATABASE gatehouse'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'gatehouse') \gexec
\connect gatehouse

SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['gatehouse_migrate', 'gatehouse_auth', 'gatehouse_token_broker', 'gatehouse_job', 'gatehouse_audit']) name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

ALTER ROLE gatehouse_migrate PASSWORD :'migrate';
ALTER ROLE gatehouse_auth PASSWORD :'auth';
ALTER ROLE gatehouse_token_broker PASSWORD :'token_broker';
ALTER ROLE gatehouse_job PASSWORD :'job';
ALTER ROLE gatehouse_audit PASSWORD :'audit';

REVOKE ALL ON DATABASE gatehouse, postgres, template1 FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT CONNECT ON DATABASE gatehouse
    TO gatehouse_migrate, gatehouse_auth, gatehouse_token_broker, gatehouse_job, gatehouse_audit;

-- A schema has the name of the role that uses it.
SELECT statement
FROM unnest(ARRAY['gatehouse_auth', 'gatehouse_token_broker', 'gatehouse_job', 'gatehouse_audit']) WITH ORDINALITY AS u (name, place)
CROSS JOIN LATERAL (VALUES
    (1, format('CREATE SCHEMA IF NOT EXISTS %I AUTHORIZATION gatehouse_migrate', name)),
    (2, format('REVOKE ALL ON SCHEMA %I FROM PUBLIC', name)),
    (3, format('GRANT USAGE ON SCHEMA %I TO %I', name, name)),
    (4, format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO %I', name, name)),
    (5, format('ALTER DEFAULT PRIVILEGES FOR ROLE gatehouse_migrate IN SCHEMA %I '
               'GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO %I', name, name))
) AS s (step, statement)
ORDER BY place, step \gexec
