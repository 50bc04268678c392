//! Sockets that systemd, or whoever speaks as it does, opened before we were started (`sd_listen_fds(3)`).

use listenfd::ListenFd;
use socket2::SockRef;
use std::{
    io,
    net::{SocketAddr, TcpListener},
};

/// More sockets are a mistake in a variable.
const MAX: usize = 1024;

/// A listening socket, non-blocking, that was there from the start.
#[derive(Debug)]
pub struct Activated {
    /// What it is to be used for (`FileDescriptorName=`); `None` if nobody said.
    pub name: Option<String>,
    pub address: SocketAddr,
    pub socket: TcpListener,
}

/// Takes all of them. To be called once, before anything else is opened and while there is one thread; the variables that
/// would tell others of them are gone then.
pub fn take() -> io::Result<Vec<Activated>> {
    let var = |name| std::env::var(name).ok();
    let names = names(var("LISTEN_FDS"), var("LISTEN_PID"), var("LISTEN_FDNAMES"), std::process::id())?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut given = ListenFd::from_env();
    names
        .into_iter()
        .enumerate()
        .map(|(index, name)| {
            let socket = given.take_tcp_listener(index).and_then(|socket| {
                let socket = socket.ok_or_else(|| io::Error::other("it is not there"))?;
                let own = SockRef::from(&socket);
                if !own.is_listener()? {
                    return Err(io::Error::other("it does not listen"));
                }
                own.set_nonblocking(true)?;
                // As with those of our own.
                own.set_tcp_nodelay(true)?;
                Ok((socket.local_addr()?, socket))
            });
            match socket {
                Ok((address, socket)) => Ok(Activated { name, address, socket }),
                Err(error) => Err(io::Error::other(format!(
                    "LISTEN_FDS: descriptor {} (`{}`) cannot be used: {error}; expected a TCP socket that listens",
                    3 + index,
                    name.unwrap_or_default(),
                ))),
            }
        })
        .collect()
}

/// The name of each socket that is there for the process `own`.
fn names(
    count: Option<String>,
    process: Option<String>,
    names: Option<String>,
    own: u32,
) -> io::Result<Vec<Option<String>>> {
    // Variables that were meant for another process and came down to us are no mistake.
    if process.and_then(|process| process.parse().ok()) != Some(own) {
        return Ok(Vec::new());
    }
    let Some(count) = count else { return Ok(Vec::new()) };
    let sockets = count.parse().ok().filter(|sockets| *sockets <= MAX).ok_or_else(|| {
        io::Error::other(format!("LISTEN_FDS: found `{}`; expected a number up to {MAX}", count.escape_debug()))
    })?;
    let Some(names) = names.filter(|_| sockets > 0) else { return Ok(vec![None; sockets]) };
    let names: Vec<_> = names.split(':').map(name).collect();
    if names.len() != sockets {
        let text = format!("LISTEN_FDNAMES has {} names for the {sockets} sockets of LISTEN_FDS", names.len());
        return Err(io::Error::other(text));
    }
    Ok(names)
}

/// systemd gives a socket without a name that of its unit.
fn name(name: &str) -> Option<String> {
    let is_none = name.is_empty() || name == "unknown" || name.ends_with(".socket");
    (!is_none).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(count: &str, process: &str, given: &str) -> Result<Vec<Option<String>>, String> {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        names(text(count), text(process), text(given), 7).map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_those_that_somebody_chose() {
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(found("2", "7", "egress:admin").unwrap(), [some("egress"), some("admin")]);
        assert_eq!(found("3", "7", "pillion.socket::unknown").unwrap(), [None, None, None]);
        assert_eq!(found("2", "7", "").unwrap(), [None, None]);
    }

    #[test]
    fn what_is_meant_for_others_is_left_alone() {
        for (count, process) in [("1", "8"), ("1", ""), ("", "7"), ("1", "x"), ("0", "7"), ("x", "8")] {
            assert_eq!(found(count, process, "egress").unwrap(), [], "{count} {process}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        assert!(found("2", "7", "egress").unwrap_err().contains("1 names for the 2 sockets"));
        for count in ["x", "-1", "1025", "99999999999999999999"] {
            assert!(found(count, "7", "").unwrap_err().contains("expected a number up to 1024"), "{count}");
        }
    }
}
