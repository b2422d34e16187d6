"""The record of one trial, its statistics, and the order of records."""
