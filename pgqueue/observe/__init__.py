"""What pgqueue says about itself: the log set-up of the command."""
