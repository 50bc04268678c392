//! On which port the local application is, where that is not written in the config.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    net::IpAddr,
    path::Path,
};

/// The number in a file. `None`: there is no such file, or nothing in it yet.
pub fn in_file(path: &Path) -> Result<Option<u16>, String> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("`{}` cannot be read: {error}", path.display())),
    };
    match text.trim() {
        "" => Ok(None),
        text => match text.parse() {
            Ok(port) if port > 0 => Ok(Some(port)),
            _ => Err(format!("`{}` has no port in it; expected a number from 1 to 65535", path.display())),
        },
    }
}

/// The port of an environment variable.
pub fn in_variable(name: &str, value: Option<&str>) -> Result<u16, String> {
    match value.map(str::trim).filter(|value| !value.is_empty()) {
        None => Err(format!("the environment variable `{name}` is not set; expected a port in it")),
        Some(value) => value.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
            format!("the environment variable `{name}` has no port in it; expected a number from 1 to 65535")
        }),
    }
}

/// The id of a process, from a file. `None`: there is no such file, or nothing in it yet.
pub fn process_in_file(path: &Path) -> Result<Option<u32>, String> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => text.trim().parse().map(Some).map_err(|_| format!("`{}` has no process id in it", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("`{}` cannot be read: {error}", path.display())),
    }
}

/// The ports on which a process listens. Of several, the lowest, as further ones are most often for metrics or debugging and
/// higher; whoever knows better says so with `port`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// One that others can reach.
    pub for_all: Option<u16>,
    /// One that only this machine can reach.
    pub loopback: Option<u16>,
}

/// The ports on which the process `id` or one of its descendants listens.
pub fn of_process(id: u32) -> io::Result<Ports> {
    let mut ports = BTreeSet::new();
    for process in family(id)? {
        let sockets = sockets_of(process);
        if sockets.is_empty() {
            continue;
        }
        // The process's own view, which may be another network namespace.
        for table in ["tcp", "tcp6"] {
            let Ok(text) = fs::read_to_string(format!("/proc/{process}/net/{table}")) else { continue };
            ports.extend(
                listening(&text)
                    .filter(|there| sockets.contains(&there.inode))
                    .map(|there| (there.address.is_loopback(), there.port)),
            );
        }
    }
    let lowest = |loopback| ports.iter().find(|there| there.0 == loopback).map(|there| there.1);
    Ok(Ports { for_all: lowest(false), loopback: lowest(true) })
}

/// The sockets that listen on this port, as far as this network namespace goes.
pub fn listening_on(port: u16) -> Vec<Listening> {
    let tables = ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default());
    tables.iter().flat_map(|table| listening(table)).filter(|there| there.port == port).collect()
}

/// The group of the process that has this socket; `None`: it could not be found out.
pub fn group_of_socket(inode: u64) -> Option<u32> {
    let entries = fs::read_dir("/proc").ok()?;
    let mut processes = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let process = processes.find(|process| sockets_of(*process).contains(&inode))?;
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    // The real one, and the one that counts.
    status.lines().find_map(|line| line.strip_prefix("Gid:"))?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// `id` and its descendants.
fn family(id: u32) -> io::Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(process) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // It may be gone by now.
        let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { continue };
        if let Some(parent) = parent_in(&stat) {
            parents.push((process, parent));
        }
    }
    let mut family = vec![id];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(process, _)| *process));
        next += 1;
    }
    Ok(family)
}

/// The parent's id in `/proc/PID/stat`, whose second field is a name in parentheses with anything in it.
fn parent_in(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The inodes of its sockets.
fn sockets_of(process: u32) -> HashSet<u64> {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fd")) else { return HashSet::new() };
    let socket = |entry: io::Result<fs::DirEntry>| {
        let link = fs::read_link(entry.ok()?.path()).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    descriptors.filter_map(socket).collect()
}

/// A socket that listens.
#[derive(Debug, PartialEq, Eq)]
pub struct Listening {
    pub address: IpAddr,
    pub port: u16,
    /// Who opened it.
    pub user: u32,
    pub inode: u64,
}

/// Those in the text of `/proc/net/tcp` or `tcp6`.
fn listening(table: &str) -> impl Iterator<Item = Listening> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (local, state) = (fields.nth(1)?, fields.nth(1)?);
        let (address, port) = local.rsplit_once(':')?;
        let (address, port) = (address_in(address)?, u16::from_str_radix(port, 16).ok()?);
        let (user, inode) = (fields.nth(3)?.parse().ok()?, fields.nth(1)?.parse().ok()?);
        (state == LISTEN).then_some(Listening { address, port, user, inode })
    })
}

/// The kernel writes each four bytes as a number of this machine's own.
fn address_in(digits: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(digits.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match digits.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let bytes: [u8; 16] = [word(0)?, word(8)?, word(16)?, word(24)?].concat().try_into().ok()?;
            Some(IpAddr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn our_own_port_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = listening(&fs::read_to_string("/proc/self/net/tcp").unwrap()).find(|there| there.port == port);
        let found = found.expect("it is listed");
        assert_eq!(listening_on(port).len(), 1);
        assert_eq!((found.address, found.user), ("127.0.0.1".parse().unwrap(), rustix::process::geteuid().as_raw()));
        assert_eq!(group_of_socket(found.inode), Some(rustix::process::getegid().as_raw()));
        assert_eq!(group_of_socket(u64::MAX), None);
        assert!(sockets_of(std::process::id()).contains(&found.inode));
        assert!(of_process(std::process::id()).unwrap().loopback.is_some_and(|lowest| lowest <= port));
        assert_eq!(of_process(u32::MAX).unwrap(), Ports::default());
    }

    #[test]
    fn tables_are_read_as_the_kernel_writes_them() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 31337 1 0000000000000000 100
   1: 0100007F:1F91 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 31338 1 0000000000000000 20
   2: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:0 0 0 0 7 1 0
   3: 00000000000000000000000001000000:0051 00000000000000000000000000000000:0000 0A 00000000:00000000 00:0 0 0 0 8 1 0
   4: cut";
        let at = |address: &str, port, user, inode| Listening { address: address.parse().unwrap(), port, user, inode };
        assert_eq!(
            listening(table).collect::<Vec<_>>(),
            [at("127.0.0.1", 8080, 1000, 31337), at("::", 80, 0, 7), at("::1", 81, 0, 8)]
        );
        assert_eq!(parent_in("17 (a (b) c) S 3 17 17 0"), Some(3));
        assert_eq!(parent_in("17"), None);
    }

    #[test]
    fn what_is_no_port_is_refused_and_what_is_not_there_yet_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        assert_eq!(in_file(&path), Ok(None));
        for (text, port) in
            [("", Ok(None)), ("8080\n", Ok(Some(8080))), ("0", Err(())), ("http", Err(())), ("65536", Err(()))]
        {
            fs::write(&path, text).unwrap();
            assert_eq!(in_file(&path).map_err(|_| ()), port, "{text}");
        }
        assert_eq!(process_in_file(&path).map_err(|_| ()), Ok(Some(65536)));
        assert_eq!(in_variable("PORT", Some(" 80 ")), Ok(80));
        for value in [None, Some(""), Some("x"), Some("0")] {
            assert!(in_variable("PORT", value).unwrap_err().contains("`PORT`"));
        }
    }
}
