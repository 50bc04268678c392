//! What the kernel says about this process. Read at each scrape; what cannot be read is left out.

use super::family::{Family, Page};
use std::fs;

/// Ticks per second in `/proc`: the kernel's `USER_HZ`, fixed at 100 on every architecture that Rust's std supports on
/// Linux, whatever the kernel's own clock is.
const TICKS: f64 = 100.0;

pub(super) fn collect(page: &mut Page) {
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse) {
        page.add(Family::ProcessCpu, &[], stat.cpu / TICKS);
        page.add(Family::ProcessVirtual, &[], stat.virtual_bytes);
        page.add(Family::ProcessThreads, &[], stat.threads);
        if let Some(boot) = number_after("/proc/stat", "btime ") {
            page.add(Family::ProcessStart, &[], boot + stat.started / TICKS);
        }
    }
    // From `status` and not `stat`, which counts in pages whose size would have to be asked for.
    if let Some(kilobytes) = number_after("/proc/self/status", "VmRSS:") {
        page.add(Family::ProcessResident, &[], kilobytes * 1024.0);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory itself.
        page.add(Family::ProcessFds, &[], open.count().saturating_sub(1) as f64);
    }
    if let Some(most) = number_after("/proc/self/limits", "Max open files") {
        page.add(Family::ProcessMaxFds, &[], most);
    }
}

/// The first number after `key` at the start of a line.
fn number_after(path: &str, key: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

struct Stat {
    cpu: f64,
    threads: f64,
    started: f64,
    virtual_bytes: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, which may itself have spaces and parentheses.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        // Numbered as in proc(5), where the first after the name is 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self { cpu: field(14)? + field(15)?, threads: field(20)?, started: field(22)?, virtual_bytes: field(23)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text =
            "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 123400 1048576 200 18446744073709551615";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.cpu, stat.threads, stat.started, stat.virtual_bytes), (300.0, 3.0, 123_400.0, 1_048_576.0));
        assert!(Stat::parse("").is_none());
        assert!(Stat::parse("7 (a) S 1").is_none());
    }
}
