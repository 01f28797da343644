"""Measures this machine: what a plan takes, where its time goes, how near that is to the limit."""
