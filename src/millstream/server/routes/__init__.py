"""The endpoints, one module a subject (spec/protocol.md)."""
