"""Networks -> numbers."""
