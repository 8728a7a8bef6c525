"""A form that encoders are written in, a file each: `prepare` a `Subject`; `asked` lists them."""
