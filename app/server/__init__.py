"""The server process around the application: HTTP protocol with limits, worker processes, logs, the state folder."""
