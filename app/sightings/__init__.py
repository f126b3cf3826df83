"""Sightings of people in front of cameras: add them, list them by page, and set how long a collection keeps them."""
