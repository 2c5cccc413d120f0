"""The web services: limits, uploads, reading off the event loop, pages."""
