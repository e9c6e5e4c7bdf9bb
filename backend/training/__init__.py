"""The learning loop: corrections in, a better detector out, and never a worse one."""
