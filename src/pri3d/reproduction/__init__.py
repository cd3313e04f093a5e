"""The tables and figures of the paper as matrices of runs, and what is made of their scores."""
