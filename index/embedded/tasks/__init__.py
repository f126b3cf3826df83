"""Work in the background: maintenance, bulk jobs, re-embedding. A lease lets one of several processes do it."""
