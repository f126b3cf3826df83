"""What the storage engines share: methods that commit a change, rounds of maintenance, repeated work in a thread."""
