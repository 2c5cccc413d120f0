"""Services for the browser and other programs: their routes, limits and pages."""
