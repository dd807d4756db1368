"""What the tests share: a node to talk to, packages to deploy, and the count of what a node has left behind."""
