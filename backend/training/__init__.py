"""Training: corrections go in, a better detector comes out, and never a worse one."""
