"""A form that encoders are written in, a file each, whose `prepare` takes a `Subject`."""
