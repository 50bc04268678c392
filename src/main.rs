//! The `pillion` program; see the library.

fn main() -> std::process::ExitCode {
    pillion::cli::main()
}
