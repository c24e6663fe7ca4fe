"""Where the error of a log-prob is born: by kind of module and by layer."""
