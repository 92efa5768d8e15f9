"""Drawing and describing with one key/value cache."""
