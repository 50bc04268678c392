//! The `pillion` program; see the library.

/// A connection is a few allocations of sizes that the C library's allocator is slow with; with this one pillion
/// executes about a tenth fewer of its own instructions. Without huge pages, which would make an idle program twice as large.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    pillion::cli::main()
}
