//! Running the programs that change the kernel's rules.

use anyhow::{Context, anyhow};
use std::{
    env,
    ffi::OsStr,
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

/// Where they are on most systems, though a user's PATH may not look there.
const FOLDERS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";

/// Runs a program; `None` if it is not installed.
pub fn run(name: &str, args: &[&str], input: &str) -> anyhow::Result<Option<Output>> {
    let Some(program) = find(name, env::var_os("PATH").as_deref()) else { return Ok(None) };
    let mut command = Command::new(&program);
    // Its errors are read.
    command.args(args).env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{} does not run", program.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // If it ends before it has read all, it says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().map(Some).with_context(|| format!("{name} does not run"))
}

fn find(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    let folders = path.into_iter().chain([OsStr::new(FOLDERS)]).flat_map(env::split_paths);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// That it is not installed, and how it can be.
pub fn missing(name: &str, package: &str, fedora: &str) -> anyhow::Error {
    anyhow!(
        "`{name}` is not installed; it is in the package `{package}` of Debian, Ubuntu and Alpine, `{fedora}` of Fedora: apt-get \
         install {package}, dnf install {fedora}, apk add {package}"
    )
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn failure(name: &str, output: &Output) -> anyhow::Error {
    let said = said(output);
    if said.contains("Operation not permitted") {
        return anyhow!(
            "the kernel does not let this process change the network: it needs CAP_NET_ADMIN. On a machine: sudo pillion net …; in a \
             pod's init container: securityContext: {{ runAsUser: 0, capabilities: {{ add: [NET_ADMIN] }} }}"
        );
    }
    anyhow!("{name} failed ({}):\n{}", output.status, said.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::process::ExitStatusExt, process::ExitStatus};

    #[test]
    fn one_is_found_in_the_path_first() {
        let (empty, full) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let program = full.path().join("nft");
        fs::write(&program, "").unwrap();
        let path = env::join_paths([empty.path(), full.path()]).unwrap();
        assert_eq!(find("nft", Some(&path)), Some(program));
    }

    #[test]
    fn a_missing_right_is_told_with_the_way_out() {
        let output = |stderr: &str| Output {
            status: ExitStatus::from_raw(1 << 8),
            stdout: Vec::new(),
            stderr: stderr.as_bytes().to_vec(),
        };
        let told = failure("nft", &output("netlink: Error: cache initialization failed: Operation not permitted\n"))
            .to_string();
        assert!(told.contains("sudo") && told.contains("NET_ADMIN"), "{told}");
        let told = failure("nft", &output("Error: syntax error\nhere\n")).to_string();
        assert_eq!(told, "nft failed (exit status: 1):\nError: syntax error\nhere");
    }
}
