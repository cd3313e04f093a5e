"""What labelled sets build on."""
