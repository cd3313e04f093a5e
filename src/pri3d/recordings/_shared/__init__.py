"""What readers build on."""
