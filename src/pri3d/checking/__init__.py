"""Is a recording right? Evidence, hypotheses, a verdict."""
