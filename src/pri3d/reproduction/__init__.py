"""The paper's tables and figures as matrices of runs, and their evaluation."""
