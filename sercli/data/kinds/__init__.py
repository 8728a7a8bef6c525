"""The kinds of data there are, one a file. To add one, add a file; see `sercli.data.registry`."""
