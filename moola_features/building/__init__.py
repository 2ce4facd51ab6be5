"""What a build is made of: tasks, the threads that run them, and what is remembered of them."""
