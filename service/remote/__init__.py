"""Fetching from the hub, from registries and over HTTPS. Children only; knows no jobs, no SQL and no settings."""
