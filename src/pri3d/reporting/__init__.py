"""Numbers and run folders -> pictures and one HTML page. The only folder that imports matplotlib."""
