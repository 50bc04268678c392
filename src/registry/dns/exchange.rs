//! One question to one server: over UDP, and over TCP where the answer has no room in a datagram.

use super::{
    answer::{FORMAT_ERROR, NO_ERROR, NO_SUCH_NAME, NOT_IMPLEMENTED},
    message::{self, Message, Question, UDP_SIZE},
};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{sleep, timeout},
};
use tracing::trace;

/// Asks `server`, and waits for at most `limit`, over TCP once more. `id` is asked for numbers that nobody can guess.
///
/// The error is what the operator gets to see.
pub async fn exchange(
    server: SocketAddr,
    question: &Question,
    limit: Duration,
    id: &impl Fn() -> u16,
) -> Result<Message, String> {
    let message = exchange_with(server, question, limit, id(), true).await?;
    if matches!(message.code, FORMAT_ERROR | NOT_IMPLEMENTED) {
        // A server from before EDNS.
        return exchange_with(server, question, limit, id(), false).await;
    }
    Ok(message)
}

async fn exchange_with(
    server: SocketAddr,
    question: &Question,
    limit: Duration,
    id: u16,
    edns: bool,
) -> Result<Message, String> {
    let exchange = Exchange { server, question, id, query: message::query(id, question, edns) };
    let mut heard = Heard::Nothing;
    let over_udp = match timeout(limit, exchange.udp(limit / 2, &mut heard)).await {
        Ok(answer) => answer.map_err(|error| error.to_string())?,
        Err(_) => return Err(heard.told(limit)),
    };
    if !over_udp.truncated && !over_udp.may_lack_records() {
        return Ok(over_udp.message);
    }
    let over_tcp = match timeout(limit, exchange.tcp()).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    };
    match over_tcp {
        Err(cause) if over_udp.truncated => Err(format!("the answer needs TCP: {cause}")),
        // As far as UDP tells it is whole.
        Err(_) => Ok(over_udp.message),
        over_tcp => over_tcp,
    }
}

struct Exchange<'q> {
    server: SocketAddr,
    question: &'q Question,
    id: u16,
    query: Vec<u8>,
}

struct Datagram {
    message: Message,
    truncated: bool,
    length: usize,
}

/// What came while waiting, and was no answer.
enum Heard {
    Nothing,
    Unusable(String),
}

impl Exchange<'_> {
    /// From a socket of its own, so that an answer has to find its port, too. Asks again after `again`.
    async fn udp(&self, again: Duration, heard: &mut Heard) -> io::Result<Datagram> {
        let any = match self.server {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any).await?;
        // The kernel gives this socket nothing that others sent.
        socket.connect(self.server).await?;
        socket.send(&self.query).await?;
        let receive = async {
            // Some servers send more than they were asked to.
            let mut bytes = [0; 4096];
            loop {
                let length = socket.recv(&mut bytes).await?;
                match self.accept(&bytes[..length]) {
                    Ok(message) => return Ok(Datagram { truncated: message.truncated, message, length }),
                    Err(cause) => {
                        trace!(server = %self.server, %cause, "ignoring a datagram");
                        *heard = Heard::Unusable(cause);
                    }
                }
            }
        };
        let repeat = async {
            sleep(again).await;
            if let Err(error) = socket.send(&self.query).await {
                return error;
            }
            std::future::pending().await
        };
        tokio::select! {
            answer = receive => answer,
            error = repeat => Err(error),
        }
    }

    async fn tcp(&self) -> io::Result<Message> {
        let mut stream = TcpStream::connect(self.server).await?;
        let length = u16::try_from(self.query.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), &self.query[..]].concat()).await?;
        let length = usize::from(stream.read_u16().await?);
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await?;
        let message = self.accept(&bytes).map_err(io::Error::other)?;
        if message.truncated { Err(io::Error::other("truncated over TCP, too")) } else { Ok(message) }
    }

    /// The message in `bytes`, if it answers the question.
    fn accept(&self, bytes: &[u8]) -> Result<Message, String> {
        let message = message::read(bytes).map_err(|error| format!("malformed: {error}"))?;
        let asked = (self.question.name.as_str(), self.question.of as u16);
        let fits = match &message.question {
            Some((name, of)) => (name.as_str(), *of) == asked,
            // Who did not understand the question may leave it out.
            None => !matches!(message.code, NO_ERROR | NO_SUCH_NAME),
        };
        if message.id != self.id || !fits {
            return Err("an answer to another question".into());
        }
        Ok(message)
    }
}

impl Datagram {
    /// Consul, as it comes, leaves out what has no room without saying so (its `enable_truncate` is off): an answer is
    /// suspicious if two more of its records would not have had room.
    fn may_lack_records(&self) -> bool {
        let answers = self.message.answers.len();
        answers > 0 && self.length + 2 * self.length / answers > usize::from(UDP_SIZE)
    }
}

impl Heard {
    fn told(self, limit: Duration) -> String {
        match self {
            Self::Nothing => format!("no answer within {limit:?}"),
            Self::Unusable(cause) => {
                format!("no answer within {limit:?} that can be used; there was one that is {cause}")
            }
        }
    }
}
