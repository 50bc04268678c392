//! Listening sockets that are open already when we start: those of a pillion whose place we take, and systemd's.

use crate::net::{activation::Activated, handover};
use anyhow::bail;
use std::net::{SocketAddr, TcpListener};

/// What is there and not taken yet.
#[derive(Debug, Default)]
pub struct Inherited {
    handed_over: Vec<(handover::Socket, SocketAddr, TcpListener)>,
    activated: Vec<Activated>,
    /// Who asked, and for which address.
    asked: Vec<(String, SocketAddr)>,
}

impl Inherited {
    pub fn new(handed_over: Vec<(handover::Socket, TcpListener)>, activated: Vec<Activated>) -> anyhow::Result<Self> {
        let with_address = |(from, socket): (handover::Socket, TcpListener)| {
            let address = socket.local_addr()?;
            Ok((from, address, socket))
        };
        let handed_over = handed_over.into_iter().map(with_address).collect::<anyhow::Result<_>>()?;
        Ok(Self { handed_over, activated, asked: Vec::new() })
    }

    /// The sockets for `name`, which the config has listen there. None if it has to open its own.
    ///
    /// What counts is the address, so that whoever has another name in a new config keeps its connections; only where the
    /// system chose the port is it the name.
    pub fn take(&mut self, name: &str, listen: SocketAddr) -> Vec<TcpListener> {
        self.asked.push((name.into(), listen));
        let is_same = |(from, address, _): &mut (handover::Socket, SocketAddr, TcpListener)| {
            *address == listen || (from.listen == listen && from.name == name)
        };
        let mut sockets: Vec<_> = self.handed_over.extract_if(.., is_same).map(|(.., socket)| socket).collect();
        let fits = |given: &mut Activated| {
            let any_port = listen.port() == 0 && given.name.is_some() && given.address.ip() == listen.ip();
            (given.address == listen || any_port) && given.name.as_ref().is_none_or(|own| own == name)
        };
        let activated: Vec<_> = self.activated.extract_if(.., fits).map(|given| given.socket).collect();
        // A pillion that was activated hands over the same ones.
        if sockets.is_empty() {
            sockets = activated;
        }
        sockets
    }

    /// Nobody else will ask. What an older pillion had and we have not is closed here; what systemd opened and nobody uses is a
    /// mistake, because its clients would wait for ever.
    pub fn finish(self) -> anyhow::Result<()> {
        let Some(Activated { name, address, .. }) = self.activated.first() else { return Ok(()) };
        let all: Vec<_> = self.asked.iter().map(|(name, listen)| format!("`{name}` on {listen}")).collect();
        let all = all.join(", ");
        let Some(name) = name else {
            bail!("LISTEN_FDS: there is a socket for {address}, where nothing listens; expected one of {all}");
        };
        if let Some((_, listen)) = self.asked.iter().find(|(asked, _)| asked == name) {
            bail!("LISTEN_FDNAMES: the socket `{name}` is bound to {address}, but `{name}` is to listen on {listen}");
        }
        bail!("LISTEN_FDNAMES: nothing is called `{name}` (bound to {address}); expected one of {all}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::listen;

    fn socket() -> (TcpListener, SocketAddr) {
        let socket = listen::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    fn from(name: &str, listen: SocketAddr) -> handover::Socket {
        handover::Socket { name: name.into(), listen }
    }

    fn activated(name: Option<&str>) -> (Activated, SocketAddr) {
        let (socket, address) = socket();
        (Activated { name: name.map(Into::into), address, socket }, address)
    }

    #[test]
    fn sockets_of_an_older_pillion_go_by_their_address_and_where_it_was_chosen_by_the_name() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let ((a, fixed), (b, _), (c, chosen)) = (socket(), socket(), socket());
        let second = a.try_clone().unwrap();
        let sockets = vec![
            (from("egress", fixed), a),
            (from("egress", fixed), second),
            (from("gone", any), b),
            (from("chosen", any), c),
        ];
        let mut inherited = Inherited::new(sockets, Vec::new()).unwrap();
        assert_eq!(inherited.take("renamed", fixed).len(), 2);
        assert_eq!(inherited.take("new", any).len(), 0);
        let taken = inherited.take("chosen", any);
        assert_eq!(taken.iter().map(|socket| socket.local_addr().unwrap()).collect::<Vec<_>>(), [chosen]);
        inherited.finish().unwrap();
    }

    #[test]
    fn systemds_sockets_go_by_name_and_address_or_address_alone() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let ((named, at), (unnamed, address), (free, _)) =
            (activated(Some("egress")), activated(None), activated(Some("admin")));
        let mut inherited = Inherited::new(Vec::new(), vec![named, unnamed, free]).unwrap();
        assert_eq!(inherited.take("other", at).len(), 0, "it is another's");
        assert_eq!(inherited.take("egress", at).len(), 1);
        assert_eq!(inherited.take("inbound", address).len(), 1);
        assert_eq!(inherited.take("admin", any).len(), 1);
        inherited.finish().unwrap();
    }

    #[test]
    fn the_same_socket_from_both_sides_is_taken_once() {
        let (given, address) = activated(None);
        let same = given.socket.try_clone().unwrap();
        let mut inherited = Inherited::new(vec![(from("egress", address), same)], vec![given]).unwrap();
        assert_eq!(inherited.take("egress", address).len(), 1);
        inherited.finish().unwrap();
    }

    #[test]
    fn a_socket_of_systemds_that_nobody_uses_is_a_mistake() {
        let listen: SocketAddr = "127.0.0.1:4140".parse().unwrap();
        for (name, expected) in [
            (Some("egress"), "but `egress` is to listen on 127.0.0.1:4140"),
            (Some("ingress"), "nothing is called `ingress`"),
            (None, "where nothing listens; expected one of `egress` on 127.0.0.1:4140"),
        ] {
            let mut inherited = Inherited::new(Vec::new(), vec![activated(name).0]).unwrap();
            assert_eq!(inherited.take("egress", listen).len(), 0);
            let error = inherited.finish().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
