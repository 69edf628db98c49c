"""Evaluation: what a persona can do, measured so that anybody who repeats it gets the same report to the last byte."""
