"""API keys with their scopes and limits. A scope is a group of routes that a key permits; see `keys.Scope`."""
