//! Running `nft`.

use super::rules::TABLE;
use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use std::{
    env,
    ffi::OsStr,
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

/// Where it is on most systems, though a user's PATH may not look there.
const FOLDERS: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Puts rules in force: all of them, or none.
pub fn load(rules: &str) -> anyhow::Result<()> {
    let output = run(&["-f", "-"], rules)?;
    if output.status.success() { Ok(()) } else { Err(failure(&output)) }
}

/// Our table, as `nft -j` tells it; `None` if it is not there.
pub fn table() -> anyhow::Result<Option<Value>> {
    let output = run(&["-j", "list", "table", "inet", TABLE], "")?;
    if output.status.success() {
        return serde_json::from_slice(&output.stdout).map(Some).context("`nft -j` printed no JSON");
    }
    if said(&output).contains("No such file or directory") { Ok(None) } else { Err(failure(&output)) }
}

fn run(args: &[&str], input: &str) -> anyhow::Result<Output> {
    let Some(program) = find(env::var_os("PATH").as_deref()) else {
        bail!(
            "`nft` is not installed; it is in the package `nftables` of Debian, Ubuntu, Fedora and Alpine: apt-get install \
             nftables, dnf install nftables, apk add nftables"
        );
    };
    let mut command = Command::new(&program);
    // Its errors are read.
    command.args(args).env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{} does not run", program.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // If it ends before it has read all, it says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().context("nft does not run")
}

fn find(path: Option<&OsStr>) -> Option<PathBuf> {
    let folders = path.into_iter().chain([OsStr::new(FOLDERS)]).flat_map(env::split_paths);
    folders.map(|folder| folder.join("nft")).find(|file| file.is_file())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn failure(output: &Output) -> anyhow::Error {
    let said = said(output);
    if said.contains("Operation not permitted") {
        return anyhow!(
            "the kernel does not let this process change the network: it needs CAP_NET_ADMIN. On a machine: sudo pillion net …; in a \
             pod's init container: securityContext: {{ runAsUser: 0, capabilities: {{ add: [NET_ADMIN] }} }}"
        );
    }
    anyhow!("nft failed ({}):\n{}", output.status, said.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::process::ExitStatusExt, process::ExitStatus};

    #[test]
    fn it_is_found_in_the_path_first() {
        let (empty, full) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let program = full.path().join("nft");
        fs::write(&program, "").unwrap();
        let path = env::join_paths([empty.path(), full.path()]).unwrap();
        assert_eq!(find(Some(&path)), Some(program));
    }

    #[test]
    fn a_missing_right_is_told_with_the_way_out() {
        let output = |stderr: &str| Output {
            status: ExitStatus::from_raw(1 << 8),
            stdout: Vec::new(),
            stderr: stderr.as_bytes().to_vec(),
        };
        let told =
            failure(&output("netlink: Error: cache initialization failed: Operation not permitted\n")).to_string();
        assert!(told.contains("sudo") && told.contains("NET_ADMIN"), "{told}");
        let told = failure(&output("Error: syntax error\nhere\n")).to_string();
        assert_eq!(told, "nft failed (exit status: 1):\nError: syntax error\nhere");
    }
}
