"""A form that encoders are written in, a file each: `prepare` of a `Subject`; `asked` lists them."""
