"""Who may do what on a line: users, roles, passwords, tokens of programs, sessions, and how often one may try."""
