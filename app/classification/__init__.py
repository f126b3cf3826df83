"""The domain of `POST /classify`: classes of images, and strings of digits."""
