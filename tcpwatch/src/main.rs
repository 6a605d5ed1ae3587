//! tcpwatch.
fn main() {}
