"""Bytes and JSON values to arrays and back: pure functions, no HTTP and no model runs."""
