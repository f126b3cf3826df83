"""Pure ASGI middleware, in one module each: checks and limits that apply to a request before its route."""
