"""What schemathesis is to know beyond the OpenAPI document; it imports this by the name in schemathesis.toml."""

import schemathesis


@schemathesis.serializer("text/csv", "application/x-ndjson", "application/jsonl")
def table(context, value):
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.hook
def before_call(context, case, kwargs):
    """The query is for tables: OpenAPI cannot say so, and a JSON request that is to be accepted must not have one."""
    if case.media_type == "application/json" and case.meta is not None and case.meta.generation.mode.is_positive:
        case.query = {}
