"""What the HTTP interface of a line answers, a file for each subject; docs/line-http.md has it in users' words."""
