"""What the tests share: brokers to run against, programs to start, and the check that nothing is left behind."""
