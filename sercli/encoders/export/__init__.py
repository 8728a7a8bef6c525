"""Encoders in the forms that others read, each read back by its own library before it is kept."""
