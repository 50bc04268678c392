//! How one pillion gives its listening sockets to another: messages over a unix socket, and descriptors beside them.
//!
//! A message is a frame: the length of its JSON and the number of descriptors, four bytes each, then the JSON, then the
//! descriptors, a few with each further byte. The conversation:
//!
//! | new | old |
//! |---|---|
//! | `hello`, with its version of this protocol | |
//! | | `offer` with the sockets, or `refused` |
//! | gets ready without accepting anything; when it is: `go` | |
//! | accepts | stops accepting, says `gone`, finishes its requests and ends |
//!
//! When either of them goes away before `go`, the old one goes on.

use rustix::{
    cmsg_space,
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
};

/// Of this protocol. Other versions are refused.
pub const VERSION: u32 = 3;

/// The largest JSON: some embedded registries, full of large instances.
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// Sockets of many listeners on many workers.
const MAX_DESCRIPTORS: usize = 16 * 1024;

/// Descriptors that travel with one byte. Linux takes 253 at most.
const BATCH: usize = 64;

/// What is read at a time, so that nobody makes us take memory by announcing much.
const CHUNK: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The new one's first word. What else is in it may differ between versions.
    Hello {
        version: u32,
    },
    Offer(Offer),
    /// There is no take-over, because of this.
    Refused(String),
    /// The new one serves from now on.
    Go,
    Gone {
        /// As in the offer, and final.
        registries: States,
    },
}

/// What the old one has. Its descriptors: the socket on which upgrades are asked for, then those of `sockets`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Offer {
    /// Its process. The socket only knows whoever opened it, which was its predecessor if it took over itself.
    pub process: u32,
    pub sockets: Vec<Socket>,
    pub registries: States,
    pub services: Followed,
}

/// The services that the old one follows.
pub type Followed = BTreeMap<String, Service>;

/// What the old one knows of a service.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Service {
    /// The registries whose instances are in use, by their names in the config.
    pub registries: Vec<String>,
    /// What is in force, as the file of a snapshot has it; nothing where that is no instance.
    pub known: Option<String>,
}

/// The states of embedded registries, by their names in the config.
pub type States = BTreeMap<String, String>;

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Socket {
    /// Whose it is.
    pub name: String,
    /// As the config has it; with port 0, the socket's own address is another one.
    pub listen: SocketAddr,
}

/// Sends a message, with descriptors beside it.
pub async fn send(stream: &mut UnixStream, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    stream.write_all(&encode(message, descriptors.len())?).await?;
    for batch in descriptors.chunks(BATCH) {
        stream.async_io(Interest::WRITABLE, || send_batch(stream.as_fd(), batch)).await?;
    }
    Ok(())
}

/// Receives a message with its descriptors. That the other one is gone is an error of the kind `UnexpectedEof`.
pub async fn receive(stream: &mut UnixStream) -> io::Result<(Message, Vec<OwnedFd>)> {
    let mut start = [0; 8];
    stream.read_exact(&mut start).await?;
    let (length, count) = lengths(start)?;
    let mut json = Vec::new();
    while json.len() < length {
        let have = json.len();
        json.resize(length.min(have + CHUNK), 0);
        stream.read_exact(&mut json[have..]).await?;
    }
    let message = decode(&json)?;
    let mut descriptors = Vec::new();
    while descriptors.len() < count {
        let expected = BATCH.min(count - descriptors.len());
        let batch = stream.async_io(Interest::READABLE, || receive_batch(stream.as_fd())).await?;
        if batch.len() != expected {
            let text =
                format!("{} of {expected} descriptors arrived; is the limit of open files too low?", batch.len());
            return Err(invalid(text));
        }
        descriptors.extend(batch);
    }
    Ok((message, descriptors))
}

fn encode(message: &Message, descriptors: usize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(message)?;
    if json.len() > MAX_BYTES || descriptors > MAX_DESCRIPTORS {
        return Err(invalid(format!("{} bytes with {descriptors} descriptors are too much", json.len())));
    }
    let mut frame = Vec::with_capacity(8 + json.len());
    for number in [json.len(), descriptors] {
        frame.extend(u32::try_from(number).map_err(io::Error::other)?.to_be_bytes());
    }
    frame.extend(json);
    Ok(frame)
}

/// The length of a frame's JSON, and how many descriptors come after it.
fn lengths([a, b, c, d, e, f, g, h]: [u8; 8]) -> io::Result<(usize, usize)> {
    let number = |bytes| usize::try_from(u32::from_be_bytes(bytes)).map_err(io::Error::other);
    let (length, descriptors) = (number([a, b, c, d])?, number([e, f, g, h])?);
    if length > MAX_BYTES || descriptors > MAX_DESCRIPTORS {
        return Err(invalid(format!("{length} bytes with {descriptors} descriptors are no message of this protocol")));
    }
    Ok((length, descriptors))
}

fn decode(json: &[u8]) -> io::Result<Message> {
    serde_json::from_slice(json).map_err(|error| invalid(format!("a message cannot be read: {error}")))
}

fn send_batch(socket: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(BATCH))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(invalid("too many descriptors at one time".into()));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    retried(|| sendmsg(socket, &[IoSlice::new(&[0])], &mut beside, flags)).map(|_| ())
}

fn receive_batch(socket: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(BATCH))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = retried(|| recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut beside, flags))?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        let text =
            format!("not all descriptors arrived, only {}; is the limit of open files too low?", descriptors.len());
        return Err(invalid(text));
    }
    Ok(descriptors)
}

fn retried<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::TcpListener;

    fn offer() -> Message {
        let sockets = vec![Socket { name: "egress".into(), listen: "[::1]:0".parse().unwrap() }];
        let registries = States::from([("own".into(), "state".into())]);
        Message::Offer(Offer {
            process: 7,
            sockets,
            registries,
            services: Followed::from([("users".into(), Service { registries: vec!["main".into()], known: None })]),
        })
    }

    #[tokio::test]
    async fn messages_and_descriptors_arrive_in_order() {
        let (mut old, mut new) = UnixStream::pair().unwrap();
        // More than fit beside one byte.
        let sockets: Vec<_> = (0..3 * BATCH + 1).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        let sending = async {
            send(&mut old, &offer(), &descriptors).await.unwrap();
            send(&mut old, &Message::Go, &[]).await.unwrap();
        };
        let receiving = async {
            let (message, received) = receive(&mut new).await.unwrap();
            assert_eq!((message, receive(&mut new).await.unwrap().0), (offer(), Message::Go));
            received
        };
        let ((), received) = tokio::join!(sending, receiving);
        let addresses = received.into_iter().map(|socket| TcpListener::from(socket).local_addr().unwrap());
        let expected: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        assert_eq!(addresses.collect::<Vec<_>>(), expected);
    }

    #[tokio::test]
    async fn a_large_message_needs_no_room_in_the_socket() {
        let (mut old, mut new) = UnixStream::pair().unwrap();
        let message = Message::Gone { registries: States::from([("own".into(), "x".repeat(4 << 20))]) };
        let (sent, received) = tokio::join!(send(&mut old, &message, &[]), receive(&mut new));
        sent.unwrap();
        assert_eq!(received.unwrap().0, message);
    }

    #[tokio::test]
    async fn descriptors_that_were_announced_and_do_not_come_are_noticed() {
        let (mut old, mut new) = UnixStream::pair().unwrap();
        old.write_all(&encode(&Message::Go, 1).unwrap()).await.unwrap();
        old.write_all(&[0]).await.unwrap();
        assert!(receive(&mut new).await.unwrap_err().to_string().starts_with("0 of 1 descriptors"));
        old.write_all(&encode(&Message::Go, 1).unwrap()).await.unwrap();
        drop(old);
        assert_eq!(receive(&mut new).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_hello_of_any_later_version_can_be_read() {
        let later = br#"{"hello":{"version":7,"more":{"x":[1]}}}"#;
        assert_eq!(decode(later).unwrap(), Message::Hello { version: 7 });
    }

    proptest! {
        #[test]
        fn what_is_sent_can_be_read(version: u32, text: String, state: String) {
            let gone = Message::Gone { registries: States::from([(text.clone(), state)]) };
            for message in [Message::Hello { version }, Message::Refused(text), gone] {
                let frame = encode(&message, 3).unwrap();
                let (start, json) = frame.split_first_chunk().unwrap();
                prop_assert_eq!(lengths(*start).unwrap(), (json.len(), 3));
                prop_assert_eq!(decode(json).unwrap(), message);
            }
        }

        /// Whatever comes is a message or an error: no panic, no waiting for more than there is, and no more memory than
        /// what came.
        #[test]
        fn any_bytes_are_a_message_or_an_error(length in 0..100_u32, count in 0..3_u32, rest: Vec<u8>, wild: bool) {
            let start = [length.to_be_bytes(), count.to_be_bytes()].concat();
            let bytes = if wild { rest } else { [start, rest].concat() };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (mut peer, mut own) = UnixStream::pair().unwrap();
                peer.write_all(&bytes).await.unwrap();
                drop(peer);
                // Nobody makes up JSON that is a message.
                let error = receive(&mut own).await.unwrap_err();
                prop_assert!(matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof));
                Ok(())
            })?;
        }
    }
}
