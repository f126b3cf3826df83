"""The sources of frames: streams, recordings, and the thread that reads one of them."""
