"""Pages and services for the browser."""
