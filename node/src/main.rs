//! `dunlin`: nodes, clusters on one machine, and the command line.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
