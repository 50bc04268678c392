//! Who takes what is redirected to a port: is pillion there, for both families, and as the user whose connections go straight?

use crate::registrar::{ListeningSocket, group_of_socket, listening_on};
use std::{fs, net::IpAddr};

/// What could be found out of a port's listeners.
#[derive(Debug, Default)]
pub struct There {
    pub listeners: Vec<Listener>,
    /// Whether the machine has an IPv6 address by which others are reached.
    pub has_ipv6: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub address: IpAddr,
    pub user: u32,
    /// Where it could be found out.
    pub group: Option<u32>,
}

/// Whose connections are pillion's own, as the rules say.
#[derive(Debug, Default)]
pub struct Own {
    pub users: Vec<u32>,
    pub groups: Vec<u32>,
    pub has_mark: bool,
}

pub fn there(port: u16) -> There {
    let listener =
        |ListeningSocket { address, user, inode, .. }| Listener { address, user, group: group_of_socket(inode) };
    There { listeners: listening_on(port).into_iter().map(listener).collect(), has_ipv6: has_ipv6() }
}

/// Addresses of interfaces, in hexadecimal digits, with the scope (0: global) in the fourth column and the interface's name in the last.
fn has_ipv6() -> bool {
    let table = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        matches!(fields[..], [_, _, _, "00", _, interface] if interface != "lo")
    })
}

impl There {
    /// What is wrong with it, as far as that can be seen; `inbound`: with what others send. `own`: of those who must not be redirected.
    pub fn troubles(&self, inbound: bool, own: Option<&Own>) -> Vec<String> {
        if self.listeners.is_empty() {
            return vec!["nobody listens there: until pillion does, these connections are refused".into()];
        }
        let mut troubles = Vec::new();
        // Outbound connections arrive at the loopback address, inbound ones at that of an interface.
        let takes = |ipv4: bool| {
            self.listeners.iter().map(|listener| listener.address).any(|address| match inbound {
                _ if address.is_unspecified() => address.is_ipv4() == ipv4 || address.is_ipv6(),
                true => address.is_ipv4() == ipv4 && !address.is_loopback(),
                false => address.is_ipv4() == ipv4 && address.is_loopback(),
            })
        };
        let anywhere = if inbound { "an address that others can reach" } else { "a loopback address" };
        for (ipv4, family, all) in [(true, "IPv4", "0.0.0.0"), (false, "IPv6", "[::]")] {
            if !takes(ipv4) && (ipv4 || self.has_ipv6) {
                troubles.push(format!(
                    "nobody listens there for {family}, and its connections are refused; expected a listener at {all} or {anywhere}"
                ));
            }
        }
        if let Some(own) = own
            && let Some(stranger) = self.listeners.iter().find(|listener| !own.may_have(listener))
        {
            let group = stranger.group.map(|group| format!(", group {group}")).unwrap_or_default();
            troubles.push(format!(
                "who listens there is user {}{group}, whose connections are redirected, too: if that is pillion, they come back to it",
                stranger.user
            ));
        }
        troubles
    }
}

impl Own {
    fn may_have(&self, listener: &Listener) -> bool {
        // Nothing tells of a socket how those are marked that its process opens. Nor always its group.
        let in_group = match listener.group {
            Some(group) => self.groups.contains(&group),
            None => !self.groups.is_empty(),
        };
        self.has_mark || self.users.contains(&listener.user) || in_group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(addresses: &[&str], has_ipv6: bool) -> There {
        let listener = |address: &&str| Listener { address: address.parse().unwrap(), user: 7, group: Some(8) };
        There { listeners: addresses.iter().map(listener).collect(), has_ipv6 }
    }

    #[test]
    fn a_listener_must_be_there_for_each_family() {
        for (addresses, has_ipv6, inbound, missing) in [
            (&["::"][..], true, false, &[][..]),
            (&["::"], true, true, &[]),
            (&["127.0.0.1", "::1"], true, false, &[]),
            (&["127.0.0.1", "::1"], true, true, &["IPv4", "IPv6"]),
            (&["127.0.0.1"], true, false, &["IPv6"]),
            (&["127.0.0.1"], false, false, &[]),
            (&["0.0.0.0"], true, true, &["IPv6"]),
            (&["::1"], true, false, &["IPv4"]),
            (&["10.0.0.1", "fd00::1"], true, true, &[]),
            (&["10.0.0.1"], false, false, &["IPv4"]),
        ] {
            let troubles = there(addresses, has_ipv6).troubles(inbound, None);
            assert_eq!(troubles.len(), missing.len(), "{addresses:?} {inbound}: {troubles:?}");
            for (trouble, missing) in troubles.iter().zip(missing) {
                assert!(trouble.contains(&format!("nobody listens there for {missing}")), "{addresses:?}: {trouble}");
            }
        }
        assert!(There::default().troubles(false, None)[0].starts_with("nobody listens there: until"));
    }

    #[test]
    fn who_listens_must_be_pillion() {
        let troubles = |users: &[u32], groups: &[u32], has_mark, group| {
            let mut there = there(&["::"], true);
            there.listeners[0].group = group;
            there.troubles(false, Some(&Own { users: users.into(), groups: groups.into(), has_mark }))
        };
        assert!(troubles(&[7], &[], false, Some(8)).is_empty());
        assert!(troubles(&[6], &[8], false, Some(8)).is_empty());
        assert!(troubles(&[6], &[], true, Some(8)).is_empty(), "it may mark them");
        assert!(troubles(&[6], &[9], false, None).is_empty(), "nobody knows");
        let told = troubles(&[6], &[9], false, Some(8)).concat();
        assert!(
            told.starts_with("who listens there is user 7, group 8, whose connections are redirected, too"),
            "{told}"
        );
        assert_eq!(troubles(&[6], &[], false, None).len(), 1);
    }
}
