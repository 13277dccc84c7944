//! Portcullis: a TLS-terminating connection proxy for Redis and PostgreSQL that enforces trusted sources.
