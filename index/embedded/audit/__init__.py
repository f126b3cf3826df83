"""The audit log: a hash-chained line for each change and each search, and the operations recorded in it."""
