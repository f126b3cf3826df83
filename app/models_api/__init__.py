"""The domain of `/models`: list the models, return their cards, reload one."""
