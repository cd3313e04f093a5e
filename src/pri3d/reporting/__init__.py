"""Numbers and run folders -> images and one HTML page. The only folder that imports matplotlib."""
