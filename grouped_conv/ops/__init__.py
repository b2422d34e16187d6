"""The operators registered with torch's dispatcher."""
