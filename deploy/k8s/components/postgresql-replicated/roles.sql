-- The roles and their rights. Again: changes nothing, except passwords that have changed.
-- psql reads the passwords from the environment, so that no log has them.
\set ON_ERROR_STOP on
\getenv writer_password WRITER_PASSWORD
\getenv reader_password READER_PASSWORD
\getenv replicator_password REPLICATOR_PASSWORD
SET log_statement = 'none';
SET log_min_error_statement = 'panic';

SELECT format('CREATE ROLE %I LOGIN', wanted)
  FROM unnest(ARRAY['mini_visa', 'reader', 'replicator']) AS wanted
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) \gexec

-- The projection: it makes and changes its own schema, and nothing else.
ALTER ROLE mini_visa PASSWORD :'writer_password' NOSUPERUSER NOCREATEDB NOCREATEROLE;
GRANT CONNECT, CREATE, TEMPORARY ON DATABASE mini_visa TO mini_visa;

-- The gateway: it reads. Through PgBouncer a session's parameters are not a client's own, so they are the role's.
ALTER ROLE reader PASSWORD :'reader_password' NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 80;
ALTER ROLE reader SET search_path = mini_visa;
ALTER ROLE reader SET default_transaction_read_only = on;
GRANT CONNECT ON DATABASE mini_visa TO reader;
ALTER DEFAULT PRIVILEGES FOR ROLE mini_visa GRANT USAGE ON SCHEMAS TO reader;
ALTER DEFAULT PRIVILEGES FOR ROLE mini_visa GRANT SELECT ON TABLES TO reader;
-- What was made before the default was set.
SELECT format('GRANT USAGE ON SCHEMA %I TO reader', nspname)
  FROM pg_namespace WHERE nspname IN ('mini_visa', 'mini_visa_next') \gexec
SELECT format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO reader', nspname)
  FROM pg_namespace WHERE nspname IN ('mini_visa', 'mini_visa_next') \gexec

-- Replicas and backups.
ALTER ROLE replicator PASSWORD :'replicator_password' NOSUPERUSER NOCREATEDB NOCREATEROLE REPLICATION;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE CONNECT ON DATABASE mini_visa FROM PUBLIC;
