"""A fuzzer for each door through which a stranger's input comes in: only the promised errors come out, and soon."""
