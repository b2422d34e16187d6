"""Scoped settings of the caller: policies, overrides, tracing, workspace limits."""
