"""Images of requests and responses: read and decode uploads, cut tiles, encode PNG and WebP."""
