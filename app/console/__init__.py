"""The console: a static web page to try the API in a browser, and the routes that serve its files."""
