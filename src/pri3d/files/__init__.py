"""What is true of any file of ours."""
