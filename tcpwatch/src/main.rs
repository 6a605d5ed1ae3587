//! The program: everything is in the library, so that benchmarks can use it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    tcpwatch::main()
}
