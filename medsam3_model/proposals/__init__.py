"""Proposals: objects that nobody named or pointed at, one by one."""
